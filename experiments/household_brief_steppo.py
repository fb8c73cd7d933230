"""StepPO on household games with thoughts of some 20 tokens before commands.

    python -m steppo_jax train experiments/household_brief_steppo.py

The base of `compare/scratchpad.py`: a decoder of 130,000 parameters, episodes
of 10 steps. Results: docs/comparison.md.
"""

import dataclasses

import household_brief_warm_start as start
import household_scratchpad_steppo as long

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig

CONFIG = dataclasses.replace(
  long.CONFIG,
  weights=start.CONFIG.save_weights,
  # 10 steps of up to 45 tokens.
  rollout=RolloutConfig(max_steps=10, max_tokens=480, max_new_tokens=48),
  packing=PackingConfig(row_length=480),
)
