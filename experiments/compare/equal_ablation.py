"""Step or token, in credit and ratio, all four at one rate and clip: 5 seeds.

    python -m steppo_jax compare experiments/compare/equal_ablation.py \
      --jobs 2 --known docs/compare/equal.jsonl

In `ablation.py` one seed's search gave the four other rates and scales of the
clip; here all have 4e-4 and half of their clip, as StepPO and PPO in
`equal.py`. 20 runs, of which 10 are known.
"""

import dataclasses

import ablation
import equal

MATRIX = dataclasses.replace(
  equal.MATRIX,
  methods=tuple(equal.scaled(x, 0.5) for x in ablation.MATRIX.methods),
)
