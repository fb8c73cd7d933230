"""The methods beside StepPO on household games with brief thoughts.

    python -m steppo_jax train experiments/household_neighbours.py
    python -m steppo_jax train experiments/household_neighbours.py \
algorithm.name=stepopsd algorithm.teacher=hindsight

ActFocus with GRPO is what it begins as, because thoughts and actions are told
apart here. `algorithm.name` takes `agentopsd` (with `algorithm.teacher=peer`),
`actfocus_ppo`, `vetta` (with `learner.critic_layers=1`) and `gagpo` as well,
the last with a clip for steps. ActFocus falls in a run like it
(docs/comparison.md); the others are not measured.
"""

import dataclasses

import household_brief_steppo

from steppo_jax.training import config

CONFIG = dataclasses.replace(
  household_brief_steppo.CONFIG,
  tasks_per_update=16,
  group_size=8,
  algorithm=config.AlgorithmConfig(name="actfocus_grpo"),
)
