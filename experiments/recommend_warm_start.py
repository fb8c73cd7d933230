"""The policy that the experiments on generated recommendations start from.

    python -m steppo_jax train experiments/recommend_warm_start.py

writes `experiments/weights/recommend_warm_start.safetensors`, which is
committed. A tiny decoder, trained from scratch on demonstrations of which most
codes are guesses: it knows how to answer, and little of what is right.
"""

import pathlib

from steppo_jax.datasets.options import Demonstrations
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"

CONFIG = config.SupervisedRun(
  save_weights=str(WEIGHTS / "recommend_warm_start.safetensors"),
  tokenizer="worlds",
  model="nano",
  demonstrations=Demonstrations(
    split="train",
    sizes=("tiny",),
    num_episodes=2000,
    seed=0,
    noise=0.7,
    env="recommend",
  ),
  env=config.EnvConfig(name="recommend", size="tiny"),
  rollout=RolloutConfig(max_steps=2, max_tokens=160, max_new_tokens=24),
  packing=PackingConfig(row_length=160),
  training=SupervisedConfig(num_steps=250, rows_per_step=8),
  evaluation=config.EvalConfig(every=250, episodes=200, temperature=1.0),
)
