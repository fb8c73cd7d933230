"""Does ActFocus help where thoughts stand before actions? 5 seeds, beside GRPO.

    python -m steppo_jax compare experiments/compare/actfocus.py \
      --jobs 1 --known docs/compare/scratchpad.jsonl

GRPO of `scratchpad.py`, and the same run whose loss weighs thoughts by 0.1 and
actions by 1 to 1.5: clip, entropy bonus and KL are GRPO's in both, so that
nothing else differs. 10 runs, of which 5 are known.
"""

import dataclasses

import scratchpad

_GRPO = next(x for x in scratchpad.MATRIX.methods if x.name == "grpo")

MATRIX = dataclasses.replace(
  scratchpad.MATRIX,
  methods=(
    _GRPO,
    dataclasses.replace(
      _GRPO,
      name="actfocus_grpo",
      assignments=(
        "algorithm.name=actfocus_grpo",
        *(x for x in _GRPO.assignments if "algorithm.name" not in x),
      ),
    ),
  ),
)
