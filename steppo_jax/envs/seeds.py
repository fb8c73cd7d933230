"""Tasks that are numbers."""

import numpy as np

from steppo_jax import types

# Numbers of a split are below this; environments take 32 bits as a seed.
_PER_SPLIT = 2**27


class SeedTasks:
  """Tasks of environments that make their problem from a seed.

  `payload["seed"]` is the number. Every split has numbers of its own. It is a
  generator of tasks as well, for the expert of such an environment.

  Args:
    name: Name of the environment in the tasks' uids.
    splits: Names of the splits; the first is trained on.

  Attributes:
    SPLITS: Names of the splits.
    SIZES: The sizes that options may name; the problems have none.

  Raises:
    ValueError: there are no splits or more than 16.
  """

  def __init__(
    self,
    name: str,
    splits: tuple[str, ...] = ("train", "valid_seen", "valid_unseen"),
  ):
    if not 1 <= len(splits) <= 16:
      raise ValueError(f"splits must be 1 to 16 names, got {len(splits)}")
    self._name = name
    self.SPLITS = tuple(splits)
    self.SIZES = ("small",)

  def sample(self, count: int, *, seed: int, update: int) -> list[types.Task]:
    """Training tasks of an update; two updates share a task by chance only."""
    rng = np.random.default_rng([seed, update])
    numbers = rng.integers(_PER_SPLIT, size=count)
    return [self._make(self.SPLITS[0], int(n)) for n in numbers]

  def panel(self, split: str, count: int) -> list[types.Task]:
    """The first `count` tasks of a split, the same in every run."""
    if split not in self.SPLITS:
      raise ValueError(f"split {split!r} is none of {', '.join(self.SPLITS)}")
    return [self._make(split, n) for n in range(count)]

  def generate(self, number: int, *, split: str, size: str) -> types.Task:
    """A task of a split; numbers that are too large begin again."""
    del size
    return self._make(split, number % _PER_SPLIT)

  def _make(self, split: str, number: int) -> types.Task:
    seed = self.SPLITS.index(split) * _PER_SPLIT + number
    uid = f"{self._name}/{split}/{number}"
    return types.Task(uid, self._name, self._name, {"seed": seed})
