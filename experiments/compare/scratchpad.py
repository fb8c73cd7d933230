"""The main table where an action has 50 tokens: ten methods, 5 seeds.

    python -m steppo_jax train experiments/household_scratchpad_warm_start.py
    python -m steppo_jax compare experiments/compare/scratchpad.py --jobs 2

As `household.py`, on the same games with thoughts before the commands. A
discount per token is that per step over 50 tokens, and a geometric mean over 50
tokens moves a seventh as far as a token's ratio.
"""

import dataclasses
import pathlib

import household

from steppo_jax.matrix import World

# 0.95 and 0.9 a step.
_TOKEN_CREDIT = ("algorithm.discount=0.99897", "algorithm.lambda_=0.9979")
_CLIPS = {"steppo": 0.03, "gspo": 0.03, "gagpo": 0.03, "turn_ppo": 0.5}


def _longer(method):
  clip = _CLIPS.get(method.name)
  changes = {"clip": (clip, clip)} if clip else {}
  if method.name == "ppo":
    changes["assignments"] = (*method.assignments, *_TOKEN_CREDIT)
  return dataclasses.replace(method, **changes)


MATRIX = dataclasses.replace(
  household.MATRIX,
  base=str(
    pathlib.Path(__file__).parents[1] / "household_scratchpad_steppo.py"
  ),
  methods=tuple(_longer(method) for method in household.MATRIX.methods),
  worlds=(World("tiny_scratchpad"),),
)
