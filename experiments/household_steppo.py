"""StepPO on generated household games: what `make train` runs."""

import pathlib

from steppo_jax import config
from steppo_jax.learner import LearnerConfig
from steppo_jax.packing import PackingConfig
from steppo_jax.rollout.loop import RolloutConfig

WEIGHTS = pathlib.Path(__file__).parent / "weights"

CONFIG = config.RunConfig(
  weights=str(WEIGHTS / "household_warm_start.safetensors"),
  num_updates=60,
  tasks_per_update=128,
  algorithm=config.AlgorithmConfig(
    name="steppo",
    discount=1.0,
    lambda_=1.0,
    # The table's clip is for large models and learning rates near 1e-6.
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.0,
    entropy_coef=0.003,
  ),
  env=config.EnvConfig(size="small", invalid_penalty=0.1),
  rollout=RolloutConfig(max_steps=20, max_tokens=320),
  packing=PackingConfig(row_length=320),
  learner=LearnerConfig(),
)
