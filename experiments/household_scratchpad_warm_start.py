"""The start of the scratchpad worlds: a policy that thinks before it acts.

    python -m steppo_jax train experiments/household_scratchpad_warm_start.py

writes `experiments/weights/household_scratchpad_warm_start.safetensors`, which
`household_scratchpad_steppo.py` starts from and which is committed; nothing
else needs this run.
"""

import dataclasses
import pathlib

import household_warm_start

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"
OPTIONS = ("scratchpad=true",)

# An answer has 41 to 60 tokens, an episode of 15 steps up to 1,000.
ROLLOUT = RolloutConfig(max_steps=15, max_tokens=1152, max_new_tokens=80)
PACKING = PackingConfig(row_length=1152)

CONFIG = dataclasses.replace(
  household_warm_start.CONFIG,
  save_weights=str(WEIGHTS / "household_scratchpad_warm_start.safetensors"),
  tokenizer="scratchpad",
  demonstrations=dataclasses.replace(
    household_warm_start.CONFIG.demonstrations, options=OPTIONS
  ),
  env=dataclasses.replace(household_warm_start.CONFIG.env, options=OPTIONS),
  rollout=ROLLOUT,
  packing=PACKING,
  training=dataclasses.replace(
    household_warm_start.CONFIG.training, num_steps=900
  ),
  evaluation=config.EvalConfig(every=450, episodes=200),
)
