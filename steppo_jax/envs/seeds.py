"""Tasks that are numbers, and what generators of worlds share."""

import hashlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from steppo_jax import types

# Numbers of a split are below this; environments take 32 bits as a seed.
_PER_SPLIT = 2**27

# Splits of the generators of worlds; the first is trained on.
SPLITS = ("train", "valid_seen", "valid_unseen")


def check(
  split: str, size: str, sizes: Collection[str], seed: float = 0
) -> None:
  """Refuses a world that no generator makes.

  Args:
    split: One of `SPLITS`.
    size: One of `sizes`.
    sizes: Those of the generator.
    seed: Number of the world within its split and size.

  Raises:
    ValueError: an argument is unknown.
  """
  if split not in SPLITS:
    raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
  if size not in sizes:
    raise ValueError(f"size must be one of {', '.join(sizes)}, got {size!r}")
  if isinstance(seed, bool) or seed != int(seed) or seed < 0:
    raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")


def digest(*words: object) -> int:
  """A number of 64 bits from words, the same on every machine."""
  data = "|".join(map(str, words)).encode()
  return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


class Place(NamedTuple):
  """Where a task of `SeedTasks` stands.

  Attributes:
    split: Its split's place in `SPLITS`.
    number: Which task of the split, from 0 on.
    seed: Both in one number, other for every task.
  """

  split: int
  number: int
  seed: int


def place(seed: int) -> Place:
  """What a seed of `SeedTasks` says; a fourth split begins with the first."""
  split, number = divmod(seed, _PER_SPLIT)
  return Place(split % len(SPLITS), number, seed)


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
    splits: tuple[str, ...] = SPLITS,
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
