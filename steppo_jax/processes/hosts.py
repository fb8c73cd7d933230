"""The processes of a run: which one this is, and what all of them know.

One program runs in all processes. Everything that is decided follows from the
seed and from what all have gathered, so that all decide the same; files that
tell of the run as a whole are written by the first process.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from steppo_jax.processes import exchange, signals

T = TypeVar("T")


class Hosts:
  """The processes of a run; this form is that of a single one.

  Attributes:
    index: Number of this process.
    count: How many there are.
    devices: Devices of this process; JAX and Orbax take equal numbers.
  """

  index = 0
  count = 1
  devices = 0

  @property
  def is_first(self) -> bool:
    """Whether this process writes what tells of the whole run."""
    return self.index == 0

  @property
  def lost(self) -> exchange.Lost | None:
    """Who is missing, or has failed; None if nobody is."""
    return None

  def share(self, items: Sequence[T], size: int = 1) -> list[T]:
    """The items of this process; each run of `size` items stays together."""
    return [
      x for i, x in enumerate(items) if i // size % self.count == self.index
    ]

  def gather(self, what: str, part: bytes) -> list[bytes]:
    """The parts of all processes; see `processes.exchange.Client.gather`."""
    del what
    return [part]

  def gather_json(self, what: str, value: Any) -> list[Any]:
    """As `gather`, for what JSON can hold."""
    parts = self.gather(what, json.dumps(value).encode())
    return [json.loads(part) for part in parts]

  def agree(self, what: str, value: Any) -> None:
    """Checks that all processes have come to the same.

    Raises:
      ValueError: one has not; it is named.
    """
    value = json.loads(json.dumps(value))
    for index, other in enumerate(self.gather_json(what, value)):
      if other != value:
        theirs, ours = _differing(other, value)
        raise ValueError(
          f"{what}: process {index} has {theirs}, process {self.index} has "
          f"{ours}; all need the same files, options and versions"
        )

  def first(self, what: str, function: Callable[[], T]) -> T | None:
    """Lets the first process do something before the others go on.

    Returns:
      What the function returned, None in the other processes.

    Raises:
      ValueError: the function did, in the first process; raised in all.
    """
    found = fault = None
    if self.is_first:
      try:
        found = function()
      except ValueError as error:
        fault = error
    said = self.gather_json(what, fault and str(fault))[0]
    if said is not None:
      raise ValueError(said) from fault
    return found

  def wait(self, what: str) -> None:
    """Returns when all processes are here."""
    self.gather(what, b"")

  def stop(self) -> None:
    """Tells the others to stop."""

  def stop_at(self, saved: int | None) -> bool:
    """The same; whether all are at the same whole update.

    Args:
      saved: The update whose state this process holds, None if it holds none.
    """
    return saved is not None

  def leave(self, status: int, failed: str | None = None) -> NoReturn:
    """Ends a process whose peers may be gone: JAX would wait for them.

    Args:
      status: To exit with.
      failed: What the others are told if this process failed by itself.
    """
    self.close(failed, status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def close(self, failed: str | None = None, status: int = 0) -> None:
    """Leaves the run, which is over, or has failed here; see `leave`."""


ALONE = Hosts()


def _differing(one: Any, other: Any) -> tuple[Any, Any]:
  """Two values that differ, without the entries in which they are equal."""
  if not isinstance(one, dict) or not isinstance(other, dict):
    return one, other
  pairs = {
    name: _differing(one.get(name), other.get(name))
    for name in sorted(one.keys() | other.keys())
    if one.get(name) != other.get(name)
  }
  return tuple({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))


@contextlib.contextmanager
def losses_stop_the_run(hosts: Hosts) -> Iterator[None]:
  """What fails because a process is gone ends as `exchange.Lost`.

  Raises:
    exchange.Lost: one is gone, whatever was raised because of it.
  """
  try:
    yield
  except BaseException as error:
    if hosts.count > 1 and not isinstance(error, ValueError):
      lost = hosts.lost or _wait_for_loss(hosts, error)
      if lost is error:
        raise
      if lost is not None:
        raise lost from error
    if isinstance(error, signals.Stopped):
      hosts.stop()
    raise


def _wait_for_loss(hosts: Hosts, error: BaseException) -> exchange.Lost | None:
  """A broken collective may be seen before the connection that ended."""
  if isinstance(error, signals.Stopped):
    return None
  for _ in range(20):
    time.sleep(0.1)
    if hosts.lost is not None:
      return hosts.lost
  return None
