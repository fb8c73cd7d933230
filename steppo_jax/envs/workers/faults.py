"""An environment that fails on purpose, to see what a run survives."""

import itertools
import os
import random
import signal
import time
from collections.abc import Mapping
from typing import Any

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.workers import worker

_made = itertools.count()


class FaultyEnv:
  """Another environment whose steps crash, hang or take their time.

  What happens at a step does not depend on the state or the answer. The draws
  follow from `seed`, the number of the worker and how many such environments
  the process has made, so that a fresh worker meets other faults.

  Args:
    env: Name of the environment that is played, see `base.row`.
    crash: Probability that a step ends the process by a signal; outside of a
      worker process it raises instead.
    hang: Probability that a step never answers; only in a worker process.
    slow: Probability that a step answers late.
    slow_s: How late, in seconds.
    seed: Root of the draws.
    options: Arguments of the environment that is played.

  Raises:
    ValueError: probabilities that are none or sum to more than 1, or a hang
      that would stop the whole run.
  """

  def __init__(
    self,
    env: str = "household",
    *,
    crash: float = 0.0,
    hang: float = 0.0,
    slow: float = 0.0,
    slow_s: float = 0.05,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
  ):
    if min(crash, hang, slow) < 0 or crash + hang + slow > 1:
      raise ValueError(
        f"crash={crash}, hang={hang} and slow={slow} must be probabilities of "
        "at most 1 together"
      )
    number = os.environ.get(worker.NUMBER)
    if hang and number is None:
      raise ValueError(f"hang={hang} needs a worker process: set env.workers")
    self._in_worker = number is not None
    self._crash, self._hang, self._slow = crash, hang, slow
    self._slow_s = slow_s
    self._random = random.Random(f"{seed} {number} {next(_made)}")
    self._env = base.make(env, **(options or {}))

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task; resets do not fail."""
    return self._env.reset(task, seed)

  def step(self, text: str) -> types.TimeStep:
    """Answers one text, or fails to.

    Raises:
      OSError: a crash, outside of a worker process.
    """
    drawn = self._random.random()
    if drawn < self._crash:
      if not self._in_worker:
        raise OSError("a crash was drawn")
      os.kill(os.getpid(), signal.SIGKILL)
    drawn -= self._crash
    if drawn < self._hang:
      while True:
        time.sleep(3600.0)
    if drawn - self._hang < self._slow:
      time.sleep(self._slow_s)
    return self._env.step(text)

  def close(self) -> None:
    """Closes the environment that is played."""
    self._env.close()
