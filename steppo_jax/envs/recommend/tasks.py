"""Guide and task lists of generated recommendations."""

from steppo_jax.envs import base, guides, tasks
from steppo_jax.envs.recommend import worlds as recommend_worlds

GUIDE = guides.Guide(
  part=(
    "You recommend the next item of a session. An item has an id of several "
    "codes, the coarse ones first, and you name one code at a time."
  ),
  answer="Answer with exactly one code of the level that is asked for.",
  tools=guides.env_step("names one code of the item", "a3"),
  unwrap="env_step",
)


def recommend(size: str) -> base.TaskList:
  """Sessions of generated users in a generated catalogue."""
  return tasks.GeneratedTasks(recommend_worlds, size)
