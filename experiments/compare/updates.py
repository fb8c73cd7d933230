"""Optimizer steps on one batch, 1, 4 and 16, by step and by token; 3 seeds.

    python -m steppo_jax compare experiments/compare/updates.py --jobs 2

At ratio 1 the step and the token ratio have one gradient: with one step on a
batch the ratio cannot matter, with 16 it can. 18 runs, no search.
"""

import pathlib

import household

from steppo_jax.compare.matrix import Matrix, Method, World

# Parts of the batch, passes over it.
_STEPS = {1: (1, 1), 4: (4, 1), 16: (4, 4)}


def _method(method, steps):
  parts, epochs = _STEPS[steps]
  return Method(
    f"{method.name}_{steps}",
    method.clip,
    (
      *method.assignments,
      f"learner.num_minibatches={parts}",
      f"learner.actor_epochs={epochs}",
    ),
  )


MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=tuple(
    _method(method, steps)
    for method in (household.STEPPO, household.PPO)
    for steps in _STEPS
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2),
)
