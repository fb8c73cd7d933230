"""Is it the critic? StepPO and PPO with more and less of one, 3 seeds.

    python -m steppo_jax compare experiments/compare/critic.py --jobs 2 \\
      --known docs/compare/updates.jsonl

One pass of the critic over each batch is what all other comparisons have. Here
it gets four, or a rate of 0, which leaves its values at 0: then also with the
weighting of the loss exchanged, each token for StepPO and each step for PPO.
24 runs, no search; those with one pass are in `updates.py` too.
"""

import pathlib

import household

from steppo_jax.compare.matrix import Matrix, Method, World

# The number of updates is that of `updates.py`'s middle, 4 parts of a batch.
_CRITICS = {
  "frozen": ("learner.critic_epochs=1", "learner.critic_learning_rate=0"),
  "once": (),
  "four_times": ("learner.critic_epochs=4",),
}
_PARTS = ("learner.num_minibatches=4", "learner.actor_epochs=1")


def _method(name: str, method: Method, *changes: str) -> Method:
  return Method(name, method.clip, (*method.assignments, *_PARTS, *changes))


MATRIX = Matrix(
  base=str(pathlib.Path(__file__).parents[1] / "household_steppo.py"),
  assignments=household.BUDGET,
  methods=(
    *(
      _method(f"{method.name}_{name}", method, *changes)
      for name, changes in _CRITICS.items()
      for method in (household.STEPPO, household.PPO)
    ),
    *(
      _method(
        f"{method.name}_by_{by}_frozen",
        method,
        *_CRITICS["frozen"],
        f"algorithm.loss_weighting={by}",
      )
      for method, by in ((household.STEPPO, "token"), (household.PPO, "step"))
    ),
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2),
)
