"""PPO with token credit and token ratio; else as household_steppo.

    python -m steppo_jax train experiments/household_ppo.py

Result: not measured.
"""

import dataclasses

import household_steppo

# Per token: a step of 4 tokens is discounted by 0.95, as in household_steppo.
CONFIG = dataclasses.replace(
  household_steppo.CONFIG,
  algorithm=dataclasses.replace(
    household_steppo.CONFIG.algorithm,
    name="ppo",
    discount=0.987,
    lambda_=0.974,
    clip_low=0.2,
    clip_high=0.2,
  ),
)
