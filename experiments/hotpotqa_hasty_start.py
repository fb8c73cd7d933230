"""The policy that the experiments on generated questions start from: hasty.

    python -m steppo_jax train experiments/hotpotqa_hasty_start.py

goes on from hotpotqa_warm_start with an expert that ends every second search in
an answer before it has read enough, and writes
`experiments/weights/hotpotqa_hasty_start.safetensors`, which is committed. The
policy can search and copy names, and has bad habits to unlearn.
"""

import dataclasses

from hotpotqa_warm_start import CONFIG as _SKILLED
from hotpotqa_warm_start import WEIGHTS

CONFIG = dataclasses.replace(
  _SKILLED,
  weights=_SKILLED.save_weights,
  save_weights=str(WEIGHTS / "hotpotqa_hasty_start.safetensors"),
  demonstrations=dataclasses.replace(
    _SKILLED.demonstrations, num_episodes=2000, seed=1, noise=0.5
  ),
  training=dataclasses.replace(
    _SKILLED.training, num_steps=120, warmup_steps=20, learning_rate=1e-3
  ),
  evaluation=dataclasses.replace(
    _SKILLED.evaluation, every=120, split="valid_seen"
  ),
)
