"""Environments in worker processes that may crash, hang or eat memory."""

import collections
import threading
import time
import weakref

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.workers.client import Worker
from steppo_jax.envs.workers.options import WorkerLimits
from steppo_jax.processes import waits


class Workers:
  """A pool of worker processes, each of which plays one episode at a time.

  Calling it gives an environment whose worker is taken from the pool at its
  reset and given back when it is closed. Workers outlive the episodes; one that
  failed is replaced by a fresh one.

  Attributes:
    at_once: The number of workers: how many environments can be played.
    started: How many processes were ever started.
    failed: How many failed, by the name of the error.
  """

  def __init__(
    self,
    recipe: base.Recipe,
    count: int,
    limits: WorkerLimits,
    python: str | None = None,
  ):
    """No process is started yet.

    Args:
      recipe: Of one environment.
      count: How many processes there are at most.
      limits: Of each.
      python: Of another interpreter, see `client.Worker`.

    Raises:
      ValueError: a count below 1.
    """
    if count < 1:
      raise ValueError(f"count={count}: at least one worker is needed")
    self.at_once: int = count
    self.started = 0
    self.failed: collections.Counter[str] = collections.Counter()
    self.limits = limits
    self._recipe, self._python = recipe, python
    self._changed = threading.Condition()
    self._idle: list[Worker] = []
    self._leases: dict[Worker, float] = {}  # to the end of the lease
    self._starting = 0
    self._failures_in_a_row = 0
    self._not_before = 0.0
    self._last_failure: base.EnvError | None = None
    self._closed = False
    self._all: set[Worker] = set()
    # For a pool that nobody closes: at its collection, or at exit.
    self._finalizer = weakref.finalize(self, _kill_all, self._all)

  def __call__(self) -> "ProcessEnv":
    return ProcessEnv(self)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def lease(self) -> Worker:
    """Takes a worker, waiting for one if all are taken.

    Raises:
      EnvError: workers do not come up, or the pool is closed.
    """
    while True:
      with self._changed:
        what = "one that plays no other episode"
        with waits.on(waits.ENVIRONMENTS, "worker processes", what):
          ready = self._wait_for_one()
        if ready is not None:
          self._leases[ready] = time.monotonic() + self.limits.lease_s
          return ready
        self._starting += 1
        number, self.started = self.started, self.started + 1
      made = None
      try:
        made = Worker(
          number, self._recipe,
          start_s=self.limits.start_s, memory_mb=self.limits.memory_mb,
          python=self._python,
        )  # fmt: skip
      except base.EnvError as error:
        with self._changed:
          self.failed[type(error).__name__] += 1
          gives_up = self._back_off(error)
        if gives_up:
          raise
      finally:
        self._came_up(made)
        del made

  def _wait_for_one(self) -> Worker | None:
    """An idle worker, or None if one is to be started now."""
    while True:
      now = time.monotonic()
      if self._closed:
        raise base.EnvDied("the workers have been closed")
      if self._idle:
        ready = self._idle.pop()
        if ready.alive:
          return ready
        # It died between two episodes, which costs neither.
        self._drop(ready, base.EnvDied.__name__)
        continue
      if len(self._leases) + self._starting < self.at_once:
        if now >= self._not_before:
          return None
        if self._failures_in_a_row >= self.limits.start_attempts:
          raise self._last_failure
        self._changed.wait(self._not_before - now)
        continue
      late = [w for w, end in self._leases.items() if end <= now]
      for taken in late:
        taken.revoked = True
        self._drop(taken, base.EnvLeaseLost.__name__)
      if not late:
        ends = self._leases.values()
        self._changed.wait(min(ends) - now if ends else None)

  def _drop(self, taken: Worker, cause: str) -> None:
    taken.kill()
    self._leases.pop(taken, None)
    self._all.discard(taken)
    self.failed[cause] += 1

  def _came_up(self, made: Worker | None) -> None:
    with self._changed:
      self._starting -= 1
      if made is not None and self._closed:
        made.kill()
      elif made is not None:
        self._all.add(made)
        self._idle.append(made)
      self._changed.notify_all()

  def _back_off(self, error: base.EnvError) -> bool:
    """Delays the next start; whether to give up for now."""
    wait = self.limits.backoff_s * 2.0**self._failures_in_a_row
    self._not_before = time.monotonic() + min(wait, self.limits.backoff_max_s)
    self._failures_in_a_row += 1
    self._last_failure = error
    return self._failures_in_a_row >= self.limits.start_attempts

  def give_back(self, taken: Worker) -> None:
    """Ends a lease; the worker waits for another episode."""
    with self._changed:
      if taken in self._leases and not taken.sound:
        # A call was broken off; its answer would be taken for the next one's.
        self._drop(taken, "interrupted")
      elif self._leases.pop(taken, None) is not None:
        self._idle.append(taken)
      self._changed.notify_all()

  def renew(self, taken: Worker) -> None:
    """Starts the time of a lease anew: the worker plays another episode."""
    with self._changed:
      if taken in self._leases:
        self._leases[taken] = time.monotonic() + self.limits.lease_s

  def answered(self, taken: Worker) -> None:
    """Notes that a worker answered a reset."""
    if not taken.answered:
      taken.answered = True
      with self._changed:
        self._failures_in_a_row = 0

  def discard(self, taken: Worker, error: base.EnvError) -> None:
    """Ends a lease and the worker with it, because of an error."""
    taken.kill()  # Outside of the lock: it may have to wait.
    never_answered = not taken.answered and not isinstance(
      error, base.EnvRaised | base.EnvLeaseLost
    )
    with self._changed:
      if taken in self._all:
        self._drop(taken, type(error).__name__)
        if never_answered:
          self._back_off(error)
      self._changed.notify_all()

  def close(self) -> None:
    """Closes all environments and ends all workers, killing the slow ones."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
      idle, self._idle = self._idle, []
    for waiting in idle:
      waiting.ask_to_close()
    deadline = time.monotonic() + self.limits.close_s
    for waiting in idle:
      waiting.kill(grace_s=max(deadline - time.monotonic(), 0.0))
    _kill_all(self._all)


def _kill_all(workers: set[Worker]) -> None:
  while workers:
    workers.pop().kill()


class ProcessEnv:
  """A `types.Env` that lives in a worker process of a pool.

  Every call has a time limit. A call that fails raises an `EnvError` and costs
  the worker; the next reset gets another.
  """

  def __init__(self, workers: Workers):
    self._workers = workers
    self._worker: Worker | None = None

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Takes a worker, or keeps the one it has, and starts a task.

    Raises:
      EnvError: see `base`.
    """
    self._take()
    out = self._call(
      "reset", self._workers.limits.reset_s,
      task=types.task_to_json(task), seed=seed,
    )  # fmt: skip
    self._workers.answered(self._worker)
    return types.TimeStep(**out)

  def step(self, text: str) -> types.TimeStep:
    """Answers one text.

    Raises:
      EnvError: see `base`.
      RuntimeError: no task was started.
    """
    out = self._call("step", self._workers.limits.step_s, text=text)
    return types.TimeStep(**out)

  def close(self) -> None:
    """Gives the worker back to the pool."""
    taken, self._worker = self._worker, None
    if taken is not None:
      self._workers.give_back(taken)

  def _take(self):
    if self._worker is not None and self._worker.revoked:
      self._worker = None
    if self._worker is None:
      self._worker = self._workers.lease()
    else:
      self._workers.renew(self._worker)

  def _call(self, operation, seconds, **arguments):
    taken = self._worker
    if taken is None:
      raise RuntimeError(f"call reset(task, seed) before {operation}")
    try:
      return taken.call(operation, seconds, **arguments)
    except base.EnvError as error:
      self._worker = None
      self._workers.discard(taken, error)
      raise
