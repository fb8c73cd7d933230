"""StepPO on household games with thoughts of 20 to 60 tokens before commands.

    python -m steppo_jax train experiments/household_scratchpad_steppo.py

Episodes end after 10 steps, with which the start wins 0.407 of 300 games. An
update of 64 episodes takes 16 s on one core; no whole run has been measured.
Methods are compared on `household_brief_steppo.py`.
"""

import dataclasses

import household_scratchpad_warm_start as start
import household_steppo

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig

CONFIG = dataclasses.replace(
  household_steppo.CONFIG,
  weights=start.CONFIG.save_weights,
  tokenizer=start.CONFIG.tokenizer,
  env=dataclasses.replace(household_steppo.CONFIG.env, options=start.OPTIONS),
  # 10 steps of up to 75 tokens.
  rollout=RolloutConfig(max_steps=10, max_tokens=768, max_new_tokens=80),
  packing=PackingConfig(row_length=768),
  learner=household_steppo.LEARNER,
)
