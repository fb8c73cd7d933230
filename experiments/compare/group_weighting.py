"""Is GSPO weak because of its ratio, or of how its loss is averaged? 3 seeds.

    python -m steppo_jax compare experiments/compare/group_weighting.py \
      --jobs 2 --known docs/compare/household.jsonl

GSPO's loss is a mean over the tokens of each step first, GRPO's one over all
tokens; neither has a critic. Both with their own weighting and with the
other's, at the rate and clip that the search chose. 12 runs, of which 6 are
known.
"""

import dataclasses

import household

_METHODS = {x.name: x for x in household.MATRIX.methods}
_GRPO = _METHODS["grpo"]
_GSPO = dataclasses.replace(_METHODS["gspo"], clip=(0.05, 0.05))


def _weighted(method, weighting):
  return dataclasses.replace(
    method,
    name=f"{method.name}_by_{weighting}",
    assignments=(
      *method.assignments,
      f"algorithm.loss_weighting={weighting}",
    ),
  )


MATRIX = dataclasses.replace(
  household.MATRIX,
  assignments=(*household.BUDGET, "learner.learning_rate=4e-4"),
  methods=(
    _GSPO,
    _weighted(_GSPO, "token"),
    _GRPO,
    _weighted(_GRPO, "step"),
  ),
  seeds=(0, 1, 2),
  search=None,
)
