"""Calls of environments, beside what else a rollout does.

This module imports no JAX.
"""

import contextlib
from collections.abc import Callable
from concurrent import futures

from steppo_jax.processes import waits


class Calls:
  """Calls of environments, in threads or at once, by the numbers of episodes.

  It is a context; leaving it ends the threads.

  Args:
    threads: Their number; 0 makes each call at once.
    waiting: Makes a context around every time that is spent waiting.
  """

  def __init__(
    self,
    threads: int,
    waiting: Callable[[], contextlib.AbstractContextManager],
  ):
    self._waiting = waiting
    self._pool = futures.ThreadPoolExecutor(threads) if threads else None
    self._pending: dict[futures.Future, tuple[int, str]] = {}

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._pool is not None:
      self._pool.shutdown(cancel_futures=True)

  def __len__(self) -> int:
    return len(self._pending)

  def start(self, index: int, uid: str, function, *args) -> None:
    """Begins a call.

    Args:
      index: Number of its episode.
      uid: Name of its episode, by which it is told where it takes long.
      function: What is called.
      args: With what.
    """
    if self._pool is not None:
      future = self._pool.submit(_named, uid, function, *args)
    else:
      future = futures.Future()
      with self._waiting():
        future.set_result(_named(uid, function, *args))
    self._pending[future] = index, uid

  def finished(
    self, *, wait: bool, news: futures.Future
  ) -> list[tuple[int, object]]:
    """Results that are there, in the order of the calls.

    Args:
      wait: Whether to wait for the first if there is none.
      news: Ends the waiting, too.
    """
    if wait:
      what = lambda: f"episodes {waits.named(self._under_way())}"
      with (
        self._waiting(),
        waits.on(waits.ROLLOUTS, waits.ENVIRONMENTS, what),
      ):
        either = [*self._pending, news]
        futures.wait(either, return_when=futures.FIRST_COMPLETED)
    ready = [future for future in self._pending if future.done()]
    return [(self._pending.pop(future)[0], future.result()) for future in ready]

  def _under_way(self) -> list[str]:
    return [
      uid
      for future, (_, uid) in self._pending.copy().items()
      if not future.done()
    ]


def _named(uid: str, function, *args):
  """Calls an environment in the name of an episode."""
  with waits.on(waits.ENVIRONMENTS, f"episode {uid}", "its answer"):
    return function(*args)
