"""GAGPO: step GAE on values that the group provides; else as household_grpo.

    python -m steppo_jax train experiments/household_gagpo.py

Result: not measured.
"""

import dataclasses

import household_grpo
import household_steppo

# No critic: the value of a state is the mean return of the group's steps there.
# Ratio, discount and lambda are per step, as in household_steppo.
CONFIG = dataclasses.replace(
  household_grpo.CONFIG,
  algorithm=dataclasses.replace(
    household_steppo.CONFIG.algorithm, name="gagpo"
  ),
)
