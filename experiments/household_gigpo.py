"""GiGPO: GRPO and a comparison within each state; else as household_grpo.

    python -m steppo_jax train experiments/household_gigpo.py

Result: not measured.
"""

import dataclasses

import household_grpo

# Steps of a group that face the same observation are compared by their return
# at the row's own discount, 0.95, which is that of household_steppo.
CONFIG = dataclasses.replace(
  household_grpo.CONFIG,
  algorithm=dataclasses.replace(household_grpo.CONFIG.algorithm, name="gigpo"),
)
