"""Task lists as pure functions of (seed, update): nothing to save."""

from collections.abc import Sequence

import numpy as np

from steppo_jax import types
from steppo_jax.envs import alfworld, household_worlds


class GeneratedTasks:
  """Household games from the generator: as many as are asked for.

  Args:
    size: Size of the worlds; see `household_worlds.SIZES`.
  """

  def __init__(self, size: str):
    if size not in household_worlds.SIZES:
      raise ValueError(
        f"env.size={size!r} is none of {', '.join(household_worlds.SIZES)}"
      )
    self._size = size

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update; two updates share a task by chance only."""
    rng = np.random.default_rng([seed, update])
    numbers = rng.integers(2**62, size=count)
    return [self._make(int(n), "train") for n in numbers]

  def panel(self, split: str, count: int) -> list[types.Task]:
    """The first `count` tasks of a split, the same in every run."""
    if split not in household_worlds.SPLITS:
      raise ValueError(
        f"split {split!r} is none of {', '.join(household_worlds.SPLITS)}"
      )
    return [self._make(n, split) for n in range(count)]

  def _make(self, number: int, split: str) -> types.Task:
    return household_worlds.generate(number, split=split, size=self._size)


class RecordedTasks:
  """ALFWorld's real games, read from a folder.

  Args:
    data_dir: See `alfworld.load_tasks`.
  """

  def __init__(self, data_dir: str):
    self._data_dir = data_dir
    self._loaded: dict[str, Sequence[types.Task]] = {}

  def _split(self, split: str) -> Sequence[types.Task]:
    if split not in self._loaded:
      self._loaded[split] = alfworld.load_tasks(self._data_dir, split)
    return self._loaded[split]

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update, without repetition while they last."""
    tasks = self._split("train")
    rng = np.random.default_rng([seed, update])
    repeat = count > len(tasks)
    picked = rng.choice(len(tasks), size=count, replace=repeat)
    return [tasks[i] for i in picked]

  def panel(self, split: str, count: int) -> list[types.Task]:
    """The tasks of a split, at most `count`, evenly spread over its order."""
    tasks = self._split(split)
    if count >= len(tasks):
      return list(tasks)
    return [tasks[i * len(tasks) // count] for i in range(count)]
