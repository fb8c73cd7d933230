"""Task lists as pure functions of (seed, update): nothing to save.

Functions such as `shopping` take the options of an environment by name and say
where its tasks come from: a generator, or a folder of real ones.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from steppo_jax import types
from steppo_jax.envs import (
  alfworld,
  alfworld_original,
  base,
  household_worlds,
  paper_library,
  paper_worlds,
  search_data,
  search_worlds,
  webshop,
  webshop_worlds,
)


class Worlds(Protocol):
  """A generator of tasks, such as `household_worlds`."""

  SPLITS: Sequence[str]
  SIZES: Collection[str]

  def generate(self, number: int, *, split: str, size: str) -> types.Task: ...


class GeneratedTasks:
  """Tasks from a generator: as many as are asked for.

  Args:
    worlds: The generator.
    size: Size of its worlds.

  Raises:
    ValueError: the generator has no such size.
  """

  def __init__(self, worlds: Worlds, size: str):
    if size not in worlds.SIZES:
      raise ValueError(
        f"env.size={size!r} is none of {', '.join(worlds.SIZES)}"
      )
    self._worlds, self._size = worlds, size

  def splits(self) -> Sequence[str]:
    """The names that `panel` knows."""
    return tuple(self._worlds.SPLITS)

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


class RecordedTasks:
  """Real tasks, read when a split is first asked for.

  Args:
    load: Reads a split.
    train: The split that is trained on.
    splits: Lists the splits that there are.

  Attributes:
    splits: The same.
    train: The same.
  """

  def __init__(
    self,
    load: Callable[[str], Sequence[types.Task]],
    train: str,
    splits: Callable[[], Sequence[str]],
  ):
    self._load, self.train, self.splits = load, train, splits
    self._loaded: dict[str, Sequence[types.Task]] = {}

  def _split(self, split: str) -> Sequence[types.Task]:
    if split not in self._loaded:
      self._loaded[split] = self._load(split)
    return self._loaded[split]

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update, without repetition while they last."""
    tasks = self._split(self.train)
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


def household(size: str) -> base.TaskList:
  """Generated household games."""
  return GeneratedTasks(household_worlds, size)


def household_recorded(data_dir: str) -> base.TaskList:
  """ALFWorld's real games; see `alfworld.load_tasks`."""
  return RecordedTasks(
    lambda split: alfworld.load_tasks(data_dir, split),
    "train",
    lambda: alfworld.splits(data_dir),
  )


def household_original(data_dir: str) -> base.TaskList:
  """The games of an ALFWorld release; see `alfworld_original.load_tasks`."""
  return RecordedTasks(
    lambda split: alfworld_original.load_tasks(data_dir, split),
    "train",
    lambda: alfworld.splits(data_dir),
  )


def shopping(
  size: str, data_dir: str | None = None, by: str = "product"
) -> base.TaskList:
  """Customers of generated shops, or WebShop's goals from a folder.

  Args:
    size: Size of generated shops.
    data_dir: See `webshop.load_catalog`.
    by: How real goals are split, "product" or "index"; see
      `webshop.load_tasks`.
  """
  if by not in webshop.SPLITS:
    raise ValueError(f"by={by!r} is none of {', '.join(webshop.SPLITS)}")
  if data_dir is None:
    return GeneratedTasks(webshop_worlds, size)
  load = lambda split: webshop.load_tasks(data_dir, split, by=by)
  return RecordedTasks(load, "train", lambda: webshop.SPLITS[by])


def questions(size: str, data_dir: str | None = None) -> base.TaskList:
  """Two-hop questions, generated or from a folder; see `search_data`."""
  if data_dir is None:
    return GeneratedTasks(search_worlds, size)
  return RecordedTasks(
    lambda split: search_data.load_tasks(data_dir, split),
    "train",
    lambda: search_data.splits(data_dir),
  )


def papers(size: str, data_dir: str | None = None) -> base.TaskList:
  """Queries for papers, generated or from a folder; see `paper_library`.

  Training reads "auto_dev": AutoScholarQuery's test split is for evaluation.
  """
  if data_dir is None:
    return GeneratedTasks(paper_worlds, size)
  load = lambda split: paper_library.load_tasks(data_dir, split)
  return RecordedTasks(load, "auto_dev", lambda: paper_library.splits(data_dir))
