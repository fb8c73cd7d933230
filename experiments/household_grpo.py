"""GRPO: groups of 8 episodes, no critic; else as household_steppo.

    python -m steppo_jax train experiments/household_grpo.py

Result: not measured.
"""

import dataclasses

import household_steppo

# As many episodes an update as household_steppo plays.
CONFIG = dataclasses.replace(
  household_steppo.CONFIG,
  tasks_per_update=household_steppo.CONFIG.tasks_per_update // 8,
  group_size=8,
  algorithm=dataclasses.replace(
    household_steppo.CONFIG.algorithm,
    name="grpo",
    discount=None,
    lambda_=None,
    clip_low=0.2,
    clip_high=0.2,
  ),
)
