"""StepPO on generated household games: what `make train` runs.

    python -m steppo_jax train experiments/household_steppo.py

Hardware: 2 CPU cores. Time and result: docs/results.md.
"""

import dataclasses
import pathlib

from steppo_jax.learner.options import LearnerConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"

# What other experiments begin with: their critics have all layers.
LEARNER = LearnerConfig(
  learning_rate=4e-4,
  warmup_steps=100,
  final_learning_rate=0.05,
  critic_epochs=1,
)

CONFIG = config.RunConfig(
  weights=str(WEIGHTS / "household_warm_start.safetensors"),
  num_updates=160,
  tasks_per_update=128,
  algorithm=config.AlgorithmConfig(
    name="steppo",
    discount=0.95,
    lambda_=0.9,
    # The table's clip is for large models and learning rates near 1e-6.
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.0,
    entropy_coef=0.003,
  ),
  env=config.EnvConfig(size="tiny", invalid_penalty=0.1),
  rollout=RolloutConfig(max_steps=15, max_tokens=256),
  packing=PackingConfig(row_length=256),
  # One layer of three: an update takes three quarters of the time of all.
  learner=dataclasses.replace(LEARNER, critic_layers=1),
  evaluation=config.EvalConfig(every=40, episodes=500),
)
