"""Five times the updates of the main table for three methods, 3 seeds.

    python -m steppo_jax compare experiments/compare/long.py --jobs 2

172 updates, as many as `make train` has, with the rate and clip that each
method chose in `household.py`: 9 runs of some 10 minutes on one quiet core.
"""

import dataclasses
import pathlib

import household

from steppo_jax.compare.matrix import Matrix, World

# Rate and scale of the clip: docs/compare/household.jsonl.
_CHOSEN = {"steppo": (4e-4, 0.5), "ppo": (8e-4, 0.5), "gigpo": (4e-4, 1.0)}


def _method(method):
  rate, scale = _CHOSEN[method.name]
  low, high = method.clip
  return dataclasses.replace(
    method,
    clip=(low * scale, high * scale),
    assignments=(*method.assignments, f"learner.learning_rate={rate:g}"),
  )


MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=(
    *household.BUDGET,
    "num_updates=172",
    "learner.warmup_steps=100",
    "evaluation.every=43",
    "checkpoint_every=43",
  ),
  methods=tuple(
    _method(m) for m in household.MATRIX.methods if m.name in _CHOSEN
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2),
)
