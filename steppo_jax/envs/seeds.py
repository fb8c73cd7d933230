"""Tasks that are numbers, and environments that can be played again."""

import zlib
from collections.abc import Mapping
from typing import Any

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


class Replayed:
  """Gives `save` and `restore` to an environment that has neither.

  What was answered since the reset is the state, and is played again; an
  environment that does not repeat itself is refused. A subclass defines
  `_reset(task, seed)` and `_step(text)`.
  """

  _past: dict[str, Any] | None = None

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task."""
    self._past = None
    out = self._reset(task, seed)
    self._past = {
      "task": types.task_to_json(task),
      "seed": seed,
      "texts": [],
      "check": _check(out),
    }
    return out

  def step(self, text: str) -> types.TimeStep:
    """Answers one text.

    Raises:
      RuntimeError: no task was started.
    """
    if self._past is None:
      raise RuntimeError("call reset(task, seed) before step")
    out = self._step(text)
    self._past["texts"].append(text)
    self._past["check"] = _check(out)
    return out

  def save(self) -> dict[str, Any]:
    """The task and all answers as JSON-able data."""
    if self._past is None:
      raise RuntimeError("call reset(task, seed) before save")
    return self._past | {"texts": [*self._past["texts"]]}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Plays again what `save` returned, in this or another instance.

    Raises:
      ValueError: the data are not what `save` returned.
      RuntimeError: the environment answers otherwise than it did.
    """
    if not {"task", "seed", "texts", "check"} <= set(state):
      raise ValueError("saved environment: expected task, seed, texts, check")
    self.reset(types.task_from_json(state["task"]), state["seed"])
    for text in state["texts"]:
      self.step(text)
    if self._past["check"] != state["check"]:
      raise RuntimeError(
        f"task {state['task'].get('uid')}: played again, the environment shows "
        "something else: it cannot be saved and restored"
      )


def _check(out: types.TimeStep) -> int:
  shown = (out.observation, float(out.reward), out.terminated, out.truncated)
  return zlib.crc32(repr(shown).encode("utf-8", "surrogatepass"))
