"""The start of the brief scratchpad: thoughts of some 20 tokens.

    python -m steppo_jax train experiments/household_brief_warm_start.py

writes `experiments/weights/household_brief_warm_start.safetensors`, a decoder
of 130,000 parameters that `household_brief_steppo.py` starts from and which
is committed; nothing else needs this run. Hardware and result:
docs/comparison.md.
"""

import dataclasses

import household_scratchpad_warm_start as long

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

CONFIG = dataclasses.replace(
  long.CONFIG,
  model="nano",
  save_weights=str(long.WEIGHTS / "household_brief_warm_start.safetensors"),
  demonstrations=dataclasses.replace(long.CONFIG.demonstrations, brief=True),
  # 15 steps of up to 45 tokens.
  rollout=RolloutConfig(max_steps=15, max_tokens=704, max_new_tokens=48),
  packing=PackingConfig(row_length=704),
  training=dataclasses.replace(long.CONFIG.training, num_steps=1200),
  evaluation=config.EvalConfig(every=300, episodes=200),
)
