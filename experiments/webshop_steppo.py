"""StepPO on generated shops.

    python -m steppo_jax train experiments/webshop_steppo.py

A purchase that is all that was wanted pays 10, a refused call costs 0.1, and an
episode has 15 steps, as published. Hardware: 2 CPU cores. Time and result:
docs/results.md.
"""

import pathlib

from steppo_jax import config
from steppo_jax.learner import LearnerConfig
from steppo_jax.packing import PackingConfig
from steppo_jax.rollout.loop import RolloutConfig

WEIGHTS = pathlib.Path(__file__).parent / "weights"

CONFIG = config.RunConfig(
  weights=str(WEIGHTS / "webshop_warm_start.safetensors"),
  tokenizer="worlds",
  num_updates=60,
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
  env=config.EnvConfig(name="webshop", size="tiny", invalid_penalty=0.1),
  rollout=RolloutConfig(max_steps=15, max_tokens=320, max_new_tokens=8),
  packing=PackingConfig(row_length=320),
  learner=LearnerConfig(
    learning_rate=4e-4,
    warmup_steps=40,
    final_learning_rate=0.05,
    critic_epochs=1,
  ),
  evaluation=config.EvalConfig(every=15, episodes=500),
)
