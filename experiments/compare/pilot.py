"""The ablation at a fraction of its size: does the machinery run? 3 seeds.

    python -m steppo_jax compare experiments/compare/pilot.py --jobs 0

8 updates of 64 episodes, no search: far too short to tell methods apart. 12
runs of half a minute on one quiet core.
"""

import dataclasses

import ablation

MATRIX = dataclasses.replace(
  ablation.MATRIX,
  assignments=(
    *ablation.MATRIX.assignments,
    "num_updates=8",
    "tasks_per_update=64",
    "learner.learning_rate=8e-4",
    "learner.warmup_steps=8",
    "learner.critic_warmup=1",
    "evaluation.every=8",
    "evaluation.episodes=200",
    "checkpoint_every=8",
  ),
  search=None,
)
