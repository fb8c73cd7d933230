"""StepPO on generated shops.

    python -m steppo_jax train experiments/webshop_steppo.py

A purchase that is all that was wanted pays 10, a refused call costs 0.1, and an
episode has 15 steps, as published. Hardware: 2 CPU cores. Time and result:
docs/results.md.
"""

import dataclasses

from household_steppo import CONFIG as _HOUSEHOLD
from household_steppo import LEARNER, WEIGHTS

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

CONFIG = dataclasses.replace(
  _HOUSEHOLD,
  weights=str(WEIGHTS / "webshop_warm_start.safetensors"),
  tokenizer="worlds",
  num_updates=60,
  env=config.EnvConfig(name="webshop", size="tiny", invalid_penalty=0.1),
  rollout=RolloutConfig(max_steps=15, max_tokens=320, max_new_tokens=8),
  packing=PackingConfig(row_length=320),
  learner=dataclasses.replace(LEARNER, warmup_steps=40),
  evaluation=config.EvalConfig(every=15, episodes=500),
)
