"""The policy that the experiments on generated questions start from.

    python -m steppo_jax train experiments/hotpotqa_warm_start.py

writes `experiments/weights/hotpotqa_warm_start.safetensors`, which is
committed. A small decoder, trained from scratch on demonstrations.
"""

import pathlib

from steppo_jax.datasets.options import Demonstrations
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"

# Two paragraphs a search, as a small model reads them.
OPTIONS = ("top=2",)

CONFIG = config.SupervisedRun(
  save_weights=str(WEIGHTS / "hotpotqa_warm_start.safetensors"),
  tokenizer="worlds",
  model="micro",
  demonstrations=Demonstrations(
    split="train",
    sizes=("tiny",),
    num_episodes=20_000,
    seed=0,
    env="search_qa",
    options=OPTIONS,
  ),
  env=config.EnvConfig(name="search_qa", size="tiny", options=OPTIONS),
  rollout=RolloutConfig(max_steps=5, max_tokens=256, max_new_tokens=8),
  packing=PackingConfig(row_length=448),
  training=SupervisedConfig(num_steps=2000, rows_per_step=8),
  evaluation=config.EvalConfig(every=500, episodes=500),
)
