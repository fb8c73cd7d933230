"""Does StepPO learn to walk a grid of the package minigrid, told in text?

    pip install -e ".[minigrid]"
    python -m steppo_jax train experiments/minigrid_steppo.py

BabyAI-GoToObj-v0: the agent sees a part of the grid and walks to the thing that
is named, within 8 steps. The package pays 1 less a share of the steps; a
refused command costs 0.1. Hardware: 2 CPU cores. Time and result:
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
  weights=str(WEIGHTS / "minigrid_warm_start.safetensors"),
  tokenizer="worlds",
  num_updates=60,
  tasks_per_update=64,
  env=config.EnvConfig(name="minigrid", invalid_penalty=0.1),
  rollout=RolloutConfig(max_steps=8, max_tokens=768, max_new_tokens=6),
  packing=PackingConfig(row_length=768),
  learner=dataclasses.replace(LEARNER, warmup_steps=40),
  evaluation=config.EvalConfig(every=15, episodes=200),
)
