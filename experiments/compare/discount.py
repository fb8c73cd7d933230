"""γ 0.99 or 0.95, per step and per token; what follows a cut: 5 seeds.

    python -m steppo_jax compare experiments/compare/discount.py --jobs 2

The paper: token GAE loses 13 % at 0.95, step GAE 5.5 %. λ is 1, the table's.
`zero` is what public code does after a limit of steps. 25 runs, no search.
"""

import pathlib

import household

from steppo_jax.compare.matrix import Matrix, Method, World


def _method(name, clip, discount):
  return Method(
    f"{name}_{discount}",
    clip,
    (
      f"algorithm.name={name}",
      f"algorithm.discount={discount}",
      "algorithm.lambda_=1.0",
    ),
  )


_STEP, _TOKEN = (0.1, 0.1), (0.2, 0.2)
_BEST = _method("steppo", _STEP, 0.99)

MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=(
    _BEST,
    _method("steppo", _STEP, 0.95),
    _method("ppo", _TOKEN, 0.99),
    _method("ppo", _TOKEN, 0.95),
    Method(
      "steppo_0.99_zero", _STEP, (*_BEST.assignments, "learner.bootstrap=zero")
    ),
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2, 3, 4),
)
