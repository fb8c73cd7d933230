"""The main table where an action has 28 tokens: ten methods, 5 seeds.

    python -m steppo_jax compare experiments/compare/scratchpad.py --jobs 2

As `household.py`, on the same games with a brief thought before each command
and 10 steps an episode, 36 updates of 128 episodes. What is evaluated is what
is trained: the policy that samples at temperature 1, on 500 unseen games. A
discount per token is that per step over 28 tokens, and a geometric mean over 28
tokens moves a fifth as far as a token's ratio. 50 runs, no search: the clips as
written and a rate of 3e-4 for all, on which StepPO does not break; with 4e-4 it
did (docs/comparison.md), before its critic had learned anything.
"""

import dataclasses
import pathlib

import household

from steppo_jax.compare.matrix import World

# 0.95 and 0.9 a step.
_TOKEN_CREDIT = ("algorithm.discount=0.99817", "algorithm.lambda_=0.99624")
_CLIPS = {"steppo": 0.05, "gspo": 0.05, "gagpo": 0.05, "turn_ppo": 0.5}


def _longer(method):
  clip = _CLIPS.get(method.name)
  changes = {"clip": (clip, clip)} if clip else {}
  if method.name == "ppo":
    changes["assignments"] = (*method.assignments, *_TOKEN_CREDIT)
  return dataclasses.replace(method, **changes)


MATRIX = dataclasses.replace(
  household.MATRIX,
  base=str(pathlib.Path(__file__).parents[1] / "household_brief_steppo.py"),
  assignments=(
    *household.BUDGET,
    "learner.learning_rate=3e-4",
    "learner.warmup_steps=30",
    "evaluation.every=18",
    "evaluation.episodes=500",
    "evaluation.temperature=1",
  ),
  methods=tuple(map(_longer, household.MATRIX.methods)),
  worlds=(World("tiny_scratchpad"),),
  search=None,
)
