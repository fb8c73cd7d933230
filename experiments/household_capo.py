"""CAPO (the paper's v5 ratio) on household games; else as household_steppo.

    python -m steppo_jax train experiments/household_capo.py

Result: not measured.
"""

import dataclasses

import household_steppo

# The centred square root moves sqrt(L) times as far as the geometric mean.
CONFIG = dataclasses.replace(
  household_steppo.CONFIG,
  algorithm=dataclasses.replace(
    household_steppo.CONFIG.algorithm,
    name="capo",
    clip_low=0.4,
    clip_high=0.4,
  ),
)
