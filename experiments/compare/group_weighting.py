"""Is GSPO weak because of its ratio, or of how its loss is averaged? 3 seeds.

    python -m steppo_jax compare experiments/compare/group_weighting.py \
      --jobs 2 --known docs/compare/household.jsonl

GSPO's loss is a mean over the tokens of each step first, GRPO's one over all
tokens; neither has a critic. Both with their own weighting and with the
other's, at the rate and clip that the search chose. 12 runs, of which 6 are
known.
"""

import dataclasses

import equal

_METHODS = {x.name: x for x in equal.MATRIX.methods}
_GSPO, _GRPO = _METHODS["gspo"], _METHODS["grpo"]


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
  equal.MATRIX,
  methods=(
    _GSPO,
    _weighted(_GSPO, "token"),
    _GRPO,
    _weighted(_GRPO, "step"),
  ),
  seeds=(0, 1, 2),
)
