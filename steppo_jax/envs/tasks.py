"""Task lists as pure functions of (seed, update): nothing to save.

Functions such as `shopping` take the options of an environment by name and say
where its tasks come from: a generator, or a folder of real ones.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from steppo_jax import types


class Worlds(Protocol):
  """A generator of tasks, such as `household.worlds`."""

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
