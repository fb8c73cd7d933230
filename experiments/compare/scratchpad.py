"""The main table where an action has 50 tokens: ten methods, 5 seeds.

    python -m steppo_jax compare experiments/compare/scratchpad.py --jobs 2

As `household.py`, on the same games with thoughts before the commands and 10
steps an episode. A discount per token is that per step over 50 tokens, and a
geometric mean over 50 tokens moves a seventh as far as a token's ratio. 172
updates: 36 teach nothing, since most of 50 tokens are free and add noise to the
gradient. About an hour a run on one core; for an accelerator. What was run of
it: docs/results.md.
"""

import dataclasses
import pathlib

import household

from steppo_jax.matrix import Search, World

# 0.95 and 0.9 a step.
_TOKEN_CREDIT = ("algorithm.discount=0.99897", "algorithm.lambda_=0.9979")
_CLIPS = {"steppo": 0.03, "gspo": 0.03, "gagpo": 0.03, "turn_ppo": 0.5}


def _longer(method):
  clip = _CLIPS.get(method.name)
  changes = {"clip": (clip, clip)} if clip else {}
  if method.name == "ppo":
    changes["assignments"] = (*method.assignments, *_TOKEN_CREDIT)
  return dataclasses.replace(method, **changes)


_FIRST = ("steppo", "ppo", "grpo", "gigpo")

MATRIX = dataclasses.replace(
  household.MATRIX,
  base=str(
    pathlib.Path(__file__).parents[1] / "household_scratchpad_steppo.py"
  ),
  assignments=(
    *household.BUDGET,
    "num_updates=172",
    "learner.warmup_steps=40",
    "evaluation.every=43",
    "checkpoint_every=10",
  ),
  methods=tuple(
    _longer(method)
    for method in sorted(
      household.MATRIX.methods, key=lambda m: m.name not in _FIRST
    )
  ),
  worlds=(World("tiny_scratchpad"),),
  search=Search(
    learning_rates=(1e-4, 2e-4), clip_scales=(1.0, 0.5), seeds=(100,)
  ),
)
