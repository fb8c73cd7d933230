"""SAPO for recommendation on generated sessions: every code paid by itself.

    python -m steppo_jax train experiments/recommend_sapo.py

Two codes name one of twelve items, each behind a thought. Hardware: 2 CPU
cores; results: docs/results.md.
"""

import dataclasses

from household_steppo import CONFIG as _HOUSEHOLD
from household_steppo import LEARNER, WEIGHTS

from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

CONFIG = dataclasses.replace(
  _HOUSEHOLD,
  weights=str(WEIGHTS / "recommend_warm_start.safetensors"),
  tokenizer="worlds",
  num_updates=40,
  tasks_per_update=16,
  group_size=8,
  algorithm=config.AlgorithmConfig(name="sapo_rec", kl_coef=0.0),
  env=config.EnvConfig(name="recommend", size="tiny", invalid_penalty=0.1),
  rollout=RolloutConfig(max_steps=2, max_tokens=160, max_new_tokens=24),
  packing=PackingConfig(row_length=160),
  learner=dataclasses.replace(LEARNER, learning_rate=1e-3, warmup_steps=20),
  evaluation=config.EvalConfig(every=20, episodes=200, temperature=1.0),
)
