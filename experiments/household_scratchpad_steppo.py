"""StepPO on household games with thoughts of 20 to 60 tokens before commands.

    python -m steppo_jax train experiments/household_scratchpad_steppo.py

Starts from `household_scratchpad_warm_start.py`, to be run first. Result: not
measured.
"""

import dataclasses

import household_scratchpad_warm_start as start
import household_steppo

CONFIG = dataclasses.replace(
  household_steppo.CONFIG,
  weights=start.CONFIG.save_weights,
  tokenizer=start.CONFIG.tokenizer,
  env=dataclasses.replace(household_steppo.CONFIG.env, options=start.OPTIONS),
  rollout=start.ROLLOUT,
  packing=start.PACKING,
)
