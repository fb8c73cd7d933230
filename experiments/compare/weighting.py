"""What counts the same in the loss: each step, trajectory or token; 3 seeds.

    python -m steppo_jax compare experiments/compare/weighting.py --jobs 2

9 runs, no search: all else is StepPO's.
"""

import pathlib

import household

from steppo_jax.compare.matrix import Matrix, Method, World

MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=tuple(
    Method(
      name,
      household.STEPPO.clip,
      (*household.STEPPO.assignments, f"algorithm.loss_weighting={name}"),
    )
    for name in ("step", "trajectory", "token")
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2),
)
