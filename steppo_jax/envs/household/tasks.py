"""Guide and task lists of the household: generated games and ALFWorld's."""

from steppo_jax.envs import base, guides, tasks
from steppo_jax.envs.household import alfworld, alfworld_original
from steppo_jax.envs.household import worlds as household_worlds

GUIDE = guides.Guide(
  part=(
    "You are a robot in a home. You go to places, open and close what can be "
    "opened, carry one thing at a time, and use appliances to heat, cool, "
    "clean or light things."
  ),
  answer=guides.ONE_COMMAND,
  tools=guides.env_step("does one of the possible commands", "go to desk 1"),
  unwrap="env_step",
)


def household(size: str) -> base.TaskList:
  """Generated household games."""
  return tasks.GeneratedTasks(household_worlds, size)


def household_recorded(data_dir: str) -> base.TaskList:
  """ALFWorld's real games; see `alfworld.load_tasks`."""
  return tasks.RecordedTasks(
    lambda split: alfworld.load_tasks(data_dir, split),
    "train",
    lambda: alfworld.splits(data_dir),
  )


def household_original(data_dir: str) -> base.TaskList:
  """The games of an ALFWorld release; see `alfworld_original.load_tasks`."""
  return tasks.RecordedTasks(
    lambda split: alfworld_original.load_tasks(data_dir, split),
    "train",
    lambda: alfworld.splits(data_dir),
  )
