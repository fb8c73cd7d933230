"""The processes of a run: which one this is, and what all of them know.

One program runs in all processes. Everything that is decided follows from the
seed and from what all have gathered, so that all decide the same; files that
tell of the run as a whole are written by the first process.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from steppo_jax import exchange, signals

T = TypeVar("T")

# How long the first process may take to start.
_START_S = 300.0
# How long after the first the last may come when all were asked to stop; clouds
# give 30 seconds.
_STOP_LIMIT_S = 8.0


class Place(NamedTuple):
  """Where a process finds the others.

  Attributes:
    coordinator: "HOST:PORT" of the first process, for `jax.distributed`; None
      where JAX finds it by itself (TPU VMs, GKE, Slurm, Open MPI).
    processes: Their number; None likewise.
    process: Number of this one; None likewise.
    port: Where the first process listens for the exchange; 0 takes the one
      after the coordinator's, or a free one where JAX finds the others.
    limit_s: Seconds that the last process may come after the first.
  """

  coordinator: str | None = None
  processes: int | None = None
  process: int | None = None
  port: int = 0
  limit_s: float = exchange.LIMIT_S


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
  def lost(self) -> str | None:
    """Who is missing, None if nobody is."""
    return None

  def share(self, items: Sequence[T], size: int = 1) -> list[T]:
    """The items of this process; each run of `size` items stays together."""
    return [
      x for i, x in enumerate(items) if i // size % self.count == self.index
    ]

  def gather(self, what: str, part: bytes) -> list[bytes]:
    """The parts of all processes; see `exchange.Client.gather`."""
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
    for index, other in enumerate(self.gather_json(what, value)):
      if other != json.loads(json.dumps(value)):
        raise ValueError(
          f"{what}: process {index} has {other}, process {self.index} has "
          f"{value}; all need the same files, options and versions"
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

  def leave(self, status: int) -> NoReturn:
    """Ends a process whose peers may be gone: JAX would wait for them."""
    self.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def close(self) -> None:
    """Leaves the run, which is over."""


ALONE = Hosts()


class _Many(Hosts):
  """One of several processes, connected to the others."""

  def __init__(self, client: exchange.Client, server: exchange.Server | None):
    self.index = jax.process_index()
    self.count = jax.process_count()
    self.devices = jax.local_device_count()
    self._client = client
    self._server = server
    self._told = False

  @property
  def lost(self) -> str | None:
    return self._client.lost

  def gather(self, what: str, part: bytes) -> list[bytes]:
    return self._client.gather(what, part)

  def stop(self) -> None:
    if not self._told:
      self._told = True
      self._client.stop()

  def stop_at(self, saved: int | None) -> bool:
    self.stop()
    found = self._client.gather(
      "stopping", json.dumps(saved).encode(), after_stop=True,
      limit_s=_STOP_LIMIT_S,
    )  # fmt: skip
    updates = {json.loads(part) for part in found}
    return len(updates) == 1 and None not in updates

  def close(self) -> None:
    self._client.close()
    if self._server is not None:
      self._server.close()


def join(place: Place, handler: signals.Handler) -> Hosts:
  """Starts `jax.distributed` and connects the processes.

  Called before anything else asks JAX for devices.

  Args:
    place: Where the others are.
    handler: Installed already. It stops the main thread when another process
      is lost or was asked to stop.

  Raises:
    ValueError: the flags are incomplete.
    RuntimeError: the others are not found in time.
  """
  _check(place)
  # XLA would take SIGTERM for itself and go on.
  with contextlib.suppress(AttributeError):
    jax.config.update("jax_enable_preemption_service", False)
  # One that is lost is for the exchange to notice, which names it; XLA would
  # abort the others.
  with contextlib.suppress(AttributeError):
    jax.config.update("jax_enable_recoverability", True)
  server = None
  if place.process:
    _await(place)
  elif place.process == 0:
    # Before the others can ask for it.
    host, port = _door(place)
    if not socket.gethostbyname(host).startswith("127."):
      host = ""  # Its name may be that of a service before this machine.
    server = exchange.Server(host, port, place.processes)
  try:
    jax.distributed.initialize(
      place.coordinator, place.processes, place.process
    )
  except Exception as error:  # Whatever its parts raise.
    raise RuntimeError(f"jax.distributed: {error}") from error
  handler.install()
  if jax.process_count() == 1:
    return ALONE
  if place.coordinator is None:
    server, (host, port) = _meet(place)
  else:
    host, port = _door(place)
  client = exchange.Client(
    host, port, jax.process_index(), limit_s=place.limit_s,
    interrupt=handler.interrupt, orphaned=_end,
  )  # fmt: skip
  return _Many(client, server)


def _door(place: Place) -> tuple[str, int]:
  """Where the first process listens."""
  host, _, port = place.coordinator.rpartition(":")
  return host, place.port or int(port) + 1


def _meet(place: Place) -> tuple[exchange.Server | None, tuple[str, int]]:
  """The same where JAX knows the way: the first one tells by the devices."""
  server, sent = None, np.zeros(64, np.uint8)
  if jax.process_index() == 0:
    server = exchange.Server("", place.port, jax.process_count())
    text = f"{_own_address()}:{server.port}".encode()
    sent[: len(text)] = list(text)
  found = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
  host, _, port = found.rstrip(b"\0").decode().rpartition(":")
  return server, (host, int(port))


def _own_address() -> str:
  """This machine's address as others see it; its name may say 127.0.1.1."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    try:
      # An address for documentation: the route is looked up, nothing is sent.
      sock.connect(("192.0.2.1", 9))
      return sock.getsockname()[0]
    except OSError:
      return socket.gethostbyname(socket.gethostname())


def _await(place: Place) -> None:
  """Returns when the first process listens; JAX would abort this one."""
  host, _, port = place.coordinator.rpartition(":")
  deadline = time.monotonic() + min(place.limit_s, _START_S)
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5.0).close()
      return
    except OSError as error:
      if time.monotonic() > deadline:
        raise RuntimeError(
          f"no process answers at --coordinator {place.coordinator}: {error}"
        ) from error
    time.sleep(0.2)


def _end(why: str) -> None:
  """Without the first process XLA ends this one, unless it has ended before."""
  with contextlib.suppress(OSError):
    message = f"stopped by {why}; the same command goes on"
    os.write(sys.stderr.fileno(), f"\n{message}\n".encode())
  os._exit(signals.RESTARTABLE)


def _check(place: Place) -> None:
  given = [place.coordinator, place.processes, place.process]
  if any(x is None for x in given) and any(x is not None for x in given):
    raise ValueError("--coordinator, --processes and --process belong together")
  if place.coordinator is not None:
    _, colon, port = place.coordinator.rpartition(":")
    if not colon or not port.isdecimal():
      raise ValueError(
        f"--coordinator takes HOST:PORT, got {place.coordinator!r}"
      )
    if not 0 <= place.process < place.processes:
      raise ValueError(
        f"--process {place.process} is none of 0 to {place.processes - 1}"
      )
  if place.limit_s <= 0:
    raise ValueError(f"--host-limit {place.limit_s:g} must be above 0")


@contextlib.contextmanager
def told_of_losses(hosts: Hosts) -> Iterator[None]:
  """What fails because a process is gone ends as `exchange.Lost`.

  Raises:
    exchange.Lost: one is gone, whatever was raised because of it.
  """
  try:
    yield
  except BaseException as error:
    if hosts.count > 1 and not isinstance(error, ValueError):
      who = hosts.lost or _wait_for_loss(hosts, error)
      if who is not None:
        raise exchange.Lost(who) from error
    if isinstance(error, signals.Stopped):
      hosts.stop()
    raise


def _wait_for_loss(hosts: Hosts, error: BaseException) -> str | None:
  """A broken collective may be seen before the connection that ended."""
  if isinstance(error, signals.Stopped):
    return None
  for _ in range(20):
    time.sleep(0.1)
    if hosts.lost is not None:
      return hosts.lost
  return None
