"""StepPO on generated two-hop questions.

    python -m steppo_jax train experiments/hotpotqa_steppo.py

An answer that matches pays 1, a step without a call costs 0.1, and an episode
has 5 steps. Hardware: 2 CPU cores. Time and result: docs/results.md.
"""

import pathlib

from steppo_jax import config
from steppo_jax.learner import LearnerConfig
from steppo_jax.packing import PackingConfig
from steppo_jax.rollout.loop import RolloutConfig

WEIGHTS = pathlib.Path(__file__).parent / "weights"

# Two paragraphs a search, as a small model reads them.
OPTIONS = ("top=2",)

CONFIG = config.RunConfig(
  weights=str(WEIGHTS / "hotpotqa_hasty_start.safetensors"),
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
  env=config.EnvConfig(
    name="search_qa", size="tiny", invalid_penalty=0.1, options=OPTIONS
  ),
  rollout=RolloutConfig(max_steps=5, max_tokens=256, max_new_tokens=8),
  packing=PackingConfig(row_length=256),
  learner=LearnerConfig(
    learning_rate=4e-4,
    warmup_steps=40,
    final_learning_rate=0.05,
    critic_epochs=1,
  ),
  evaluation=config.EvalConfig(every=15, episodes=500),
)
