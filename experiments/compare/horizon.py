"""Limits of 10, 20 and 40 steps at an equal number of steps an update, 3 seeds.

    python -m steppo_jax compare experiments/compare/horizon.py --jobs 2

The tiny games with room for more and more wandering: 192, 96 and 48 episodes an
update, 8 of each game for all methods. 27 runs, no search.
"""

import dataclasses
import pathlib

import household

from steppo_jax.compare.matrix import Matrix, Method, World

_NAMES = ("steppo", "ppo", "gigpo")


def _method(method: Method) -> Method:
  given = ("tasks_per_update=", "group_size=")
  kept = (x for x in method.assignments if not x.startswith(given))
  return dataclasses.replace(method, assignments=tuple(kept))


def _world(steps: int) -> World:
  # A step has about 14 tokens, a task 30.
  tokens = 16 * (steps + 4)
  return World(
    f"{steps}_steps",
    (
      f"tasks_per_update={240 // steps}",
      "group_size=8",
      f"rollout.max_steps={steps}",
      f"rollout.max_tokens={tokens}",
      f"packing.row_length={tokens}",
    ),
  )


MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=tuple(
    _method(m) for m in household.MATRIX.methods if m.name in _NAMES
  ),
  worlds=(_world(10), _world(20), _world(40)),
  seeds=(0, 1, 2),
)
