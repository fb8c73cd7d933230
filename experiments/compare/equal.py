"""The ten methods of the main table at one rate, 5 seeds.

    python -m steppo_jax compare experiments/compare/equal.py --jobs 2 \
      --known docs/compare/household.jsonl

One seed's search gave five of them 8e-4, with which all ten win less while
they train (docs/comparison.md). Here all have 4e-4, each with the clip that the
search chose for it. 50 runs, of which 25 are known.
"""

import dataclasses

import household

# Scale of the clip: docs/compare/household.jsonl.
_WHOLE = ("grpo", "rloo", "reinforce_pp", "gigpo")


def scaled(method, scale):
  """The method with its clip a number of times as wide."""
  low, high = method.clip
  return dataclasses.replace(method, clip=(low * scale, high * scale))


MATRIX = dataclasses.replace(
  household.MATRIX,
  assignments=(*household.BUDGET, "learner.learning_rate=4e-4"),
  methods=tuple(
    scaled(x, 1.0 if x.name in _WHOLE else 0.5)
    for x in household.MATRIX.methods
  ),
  search=None,
)
