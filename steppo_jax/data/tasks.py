"""Task lists as pure functions of (seed, update): nothing to save."""

from collections.abc import Sequence

import numpy as np

from steppo_jax import types
from steppo_jax.envs import (
  alfworld,
  household_worlds,
  webshop,
  webshop_worlds,
)


class GeneratedTasks:
  """Household games from the generator: as many as are asked for.

  Args:
    size: Size of the worlds; see `household_worlds.SIZES`.
  """

  _worlds = household_worlds

  def __init__(self, size: str):
    if size not in self._worlds.SIZES:
      raise ValueError(
        f"env.size={size!r} is none of {', '.join(self._worlds.SIZES)}"
      )
    self._size = size

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update; two updates share a task by chance only."""
    rng = np.random.default_rng([seed, update])
    numbers = rng.integers(2**62, size=count)
    return [self._make(int(n), "train") for n in numbers]

  def panel(self, split: str, count: int) -> list[types.Task]:
    """The first `count` tasks of a split, the same in every run."""
    if split not in self._worlds.SPLITS:
      raise ValueError(
        f"split {split!r} is none of {', '.join(self._worlds.SPLITS)}"
      )
    return [self._make(n, split) for n in range(count)]

  def _make(self, number: int, split: str) -> types.Task:
    return self._worlds.generate(number, split=split, size=self._size)


class GeneratedShopping(GeneratedTasks):
  """Customers of generated shops: as many as are asked for.

  Args:
    size: Size of the shops; see `webshop_worlds.SIZES`.
  """

  _worlds = webshop_worlds


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
      self._loaded[split] = self._load(split)
    return self._loaded[split]

  def _load(self, split: str) -> Sequence[types.Task]:
    return alfworld.load_tasks(self._data_dir, split)

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


class RecordedShopping(RecordedTasks):
  """The published goals of WebShop, read from a folder.

  Args:
    data_dir: See `webshop.load_catalog`.
    by: Which split, "product" or "index"; see `webshop.load_tasks`.
  """

  def __init__(self, data_dir: str, by: str = "product"):
    if by not in webshop.SPLITS:
      raise ValueError(f"by={by!r} is none of {', '.join(webshop.SPLITS)}")
    super().__init__(data_dir)
    self._by = by

  def _load(self, split: str) -> Sequence[types.Task]:
    return webshop.load_tasks(self._data_dir, split, by=self._by)
