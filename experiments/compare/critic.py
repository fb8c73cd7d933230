"""Is it the critic? StepPO and PPO with more and less of one, 3 seeds.

    python -m steppo_jax compare experiments/compare/critic.py --jobs 2 \\
      --known docs/compare/updates.jsonl

One pass of the critic over each batch is what all other comparisons have. Here
it gets four, or a rate of 0, which leaves its values at 0. 18 runs, no search;
those with one pass are in `updates.py` too.
"""

import pathlib

import household

from steppo_jax.matrix import Matrix, Method, World

# The number of updates is that of `updates.py`'s middle, 4 parts of a batch.
_CRITICS = {
  "frozen": ("learner.critic_epochs=1", "learner.critic_learning_rate=0"),
  "once": (),
  "four_times": ("learner.critic_epochs=4",),
}
_PARTS = ("learner.num_minibatches=4", "learner.actor_epochs=1")

MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=tuple(
    Method(
      f"{method.name}_{name}",
      method.clip,
      (*method.assignments, *_PARTS, *critic),
    )
    for name, critic in _CRITICS.items()
    for method in (household.STEPPO, household.PPO)
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2),
)
