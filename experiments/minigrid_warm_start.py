"""The policy that the experiment on grids starts from.

    pip install -e ".[minigrid]"
    python -m steppo_jax train experiments/minigrid_warm_start.py

writes `experiments/weights/minigrid_warm_start.safetensors`. A small decoder
reads 400 walks of the bot that the package minigrid brings, and is stopped
early on purpose: it knows the commands, and finds 7 % of the things (83 % after
60 steps; 200 unseen tasks, 2026-11-30, 45712c3).
"""

import pathlib

from steppo_jax.datasets.options import Demonstrations
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"

CONFIG = config.SupervisedRun(
  save_weights=str(WEIGHTS / "minigrid_warm_start.safetensors"),
  tokenizer="worlds",
  model="micro",
  demonstrations=Demonstrations(
    split="train", sizes=("small",), num_episodes=400, seed=0, env="minigrid"
  ),
  env=config.EnvConfig(name="minigrid"),
  rollout=RolloutConfig(max_steps=8, max_tokens=768, max_new_tokens=6),
  packing=PackingConfig(row_length=768),
  training=SupervisedConfig(num_steps=24, warmup_steps=5, rows_per_step=8),
  evaluation=config.EvalConfig(every=24, episodes=200),
)
