"""Step or token, in the credit and in the ratio: all four, 5 seeds.

    python -m steppo_jax compare experiments/compare/ablation.py --jobs 2

`steppo` has both by the step, `ppo` both by the token. 36 runs.
"""

import pathlib

import household

from steppo_jax.compare.matrix import Matrix, Method, Search, World

# The rows differ in the ratio, the mean of the loss, and the dual clip and
# critic clock that belong to the credit. Each ratio has its own clip.
_STEP_RATIO, _TOKEN_RATIO = (0.1, 0.1), (0.2, 0.2)

MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=(
    household.STEPPO,
    Method(
      "step_credit_token_ratio",
      _TOKEN_RATIO,
      (
        "algorithm.name=steppo",
        "algorithm.ratio=token",
        *household.STEP_CREDIT,
      ),
    ),
    Method(
      "token_credit_step_ratio",
      _STEP_RATIO,
      (
        "algorithm.name=ppo",
        "algorithm.ratio=step",
        "algorithm.loss_weighting=step",
        *household.TOKEN_CREDIT,
      ),
    ),
    household.PPO,
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2, 3, 4),
  search=Search(
    learning_rates=(4e-4, 8e-4), clip_scales=(1.0, 0.5), seeds=(100,)
  ),
)
