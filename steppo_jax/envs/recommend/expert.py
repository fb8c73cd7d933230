"""An expert that knows the target and thinks of the last item; or guesses."""

from collections.abc import Sequence

import numpy as np

from steppo_jax import types
from steppo_jax.envs import experts
from steppo_jax.envs.recommend import worlds as recommend_worlds


def recommender(task: types.Task) -> list[str]:
  """The codes of the target, each behind a thought of the last item."""
  last = " ".join(task.payload["session"][-1])
  return [f"<think>{last}</think> {code}" for code in task.payload["target"]]


def guess(
  task: types.Task,
  actions: Sequence[str],
  *,
  noise: float,
  random: np.random.Generator,
) -> list[str]:
  """Names any code of a level, now and then.

  Args:
    task: A generated session.
    actions: The plan of `recommender`.
    noise: Chance of doing so at a level.
    random: Draws where, and which code.
  """
  found = list(actions)
  for level, action in enumerate(actions):
    if random.random() < noise:
      code = int(random.integers(task.payload["codes"]))
      head, _, _ = action.rpartition(" ")
      found[level] = f"{head} {recommend_worlds.name(level, code)}"
  return found


EXPERT = experts.Expert(recommend_worlds, recommender, guess, text="seen")
