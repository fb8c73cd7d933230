"""Task lists of question answering and paper search, by (seed, update)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.envs import (
  paper_library,
  paper_worlds,
  search_data,
  search_worlds,
)


class _Source(NamedTuple):
  """Where tasks come from.

  Attributes:
    generate: Makes one task of (number, split, size).
    splits: Splits of generated tasks.
    sizes: Sizes of generated tasks.
    load: Reads a split of real tasks from a folder.
    train: The split of real tasks that is trained on.
  """

  generate: Callable[..., types.Task]
  splits: Sequence[str]
  sizes: Sequence[str]
  load: Callable[[str, str], list[types.Task]]
  train: str


SOURCES = {
  "search_qa": _Source(
    search_worlds.generate,
    search_worlds.SPLITS,
    tuple(search_worlds.SIZES),
    search_data.load_tasks,
    "train",
  ),
  "paper_search": _Source(
    paper_worlds.generate,
    paper_worlds.SPLITS,
    tuple(paper_worlds.SIZES),
    paper_library.load_tasks,
    "auto_dev",
  ),
}


def _source(env: str) -> _Source:
  if env not in SOURCES:
    raise ValueError(
      f"env.name={env!r} has no search tasks; {', '.join(SOURCES)} have"
    )
  return SOURCES[env]


class GeneratedSearchTasks:
  """Questions or queries from the generators: as many as are asked for.

  Args:
    env: "search_qa" or "paper_search".
    size: Size of the worlds; see `search_worlds.SIZES`, `paper_worlds.SIZES`.

  Raises:
    ValueError: an argument is unknown.
  """

  def __init__(self, env: str, size: str):
    self._source = _source(env)
    if size not in self._source.sizes:
      raise ValueError(
        f"env.size={size!r} is none of {', '.join(self._source.sizes)}"
      )
    self._size = size

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update; two updates share a task by chance only."""
    rng = np.random.default_rng([seed, update])
    numbers = rng.integers(2**62, size=count)
    return [self._make(int(n), "train") for n in numbers]

  def panel(self, split: str, count: int) -> list[types.Task]:
    """The first `count` tasks of a split, the same in every run."""
    if split not in self._source.splits:
      raise ValueError(
        f"split {split!r} is none of {', '.join(self._source.splits)}"
      )
    return [self._make(n, split) for n in range(count)]

  def _make(self, number: int, split: str) -> types.Task:
    return self._source.generate(number, split=split, size=self._size)


class RecordedSearchTasks:
  """Real questions or queries, read from a folder.

  Training tasks are those of the split "train" (questions) or "auto_dev"
  (AutoScholarQuery's queries, whose test split is for evaluation).

  Args:
    env: "search_qa" or "paper_search".
    data_dir: See `search_data.load_tasks` and `paper_library.load_tasks`.

  Raises:
    ValueError: there is no such environment.
  """

  def __init__(self, env: str, data_dir: str):
    self._source = _source(env)
    self._data_dir = data_dir
    self._loaded: dict[str, Sequence[types.Task]] = {}

  def _split(self, split: str) -> Sequence[types.Task]:
    if split not in self._loaded:
      self._loaded[split] = self._source.load(self._data_dir, split)
    return self._loaded[split]

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update, without repetition while they last."""
    tasks = self._split(self._source.train)
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
