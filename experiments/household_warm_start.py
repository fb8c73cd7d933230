"""The policy that every household experiment starts from.

A 360k-parameter decoder, trained from scratch on 2,000 demonstrations of a
searching expert in small worlds, and stopped early on purpose.

    python -m steppo_jax train experiments/household_warm_start.py

writes `experiments/weights/household_warm_start.safetensors`, which is
committed; nothing else needs this run.
"""

import pathlib

from steppo_jax.datasets.options import Demonstrations
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"

CONFIG = config.SupervisedRun(
  save_weights=str(WEIGHTS / "household_warm_start.safetensors"),
  model="micro",
  demonstrations=Demonstrations(
    split="train",
    sizes=("tiny",),
    num_episodes=6000,
    seed=0,
    detours=float("inf"),
  ),
  env=config.EnvConfig(size="tiny"),
  rollout=RolloutConfig(max_steps=15, max_tokens=256),
  packing=PackingConfig(row_length=448),
  training=SupervisedConfig(num_steps=470, rows_per_step=8),
  evaluation=config.EvalConfig(every=470, episodes=500),
)
