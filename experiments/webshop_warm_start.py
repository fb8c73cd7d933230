"""The policy that the experiments on generated shops start from.

    python -m steppo_jax train experiments/webshop_warm_start.py

writes `experiments/weights/webshop_warm_start.safetensors`, which is
committed. A small decoder, trained from scratch on demonstrations, and
stopped early on purpose.
"""

import pathlib

from steppo_jax.datasets.options import Demonstrations
from steppo_jax.learner.options import SupervisedConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.rollout.options import RolloutConfig
from steppo_jax.training import config

WEIGHTS = pathlib.Path(__file__).parent / "weights"

CONFIG = config.SupervisedRun(
  save_weights=str(WEIGHTS / "webshop_warm_start.safetensors"),
  tokenizer="worlds",
  model="micro",
  demonstrations=Demonstrations(
    split="train", sizes=("tiny",), num_episodes=6000, seed=0, env="webshop"
  ),
  env=config.EnvConfig(name="webshop", size="tiny"),
  rollout=RolloutConfig(max_steps=15, max_tokens=320, max_new_tokens=8),
  packing=PackingConfig(row_length=448),
  training=SupervisedConfig(num_steps=220, rows_per_step=8),
  evaluation=config.EvalConfig(every=220, episodes=500),
)
