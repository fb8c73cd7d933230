"""Connects the processes of a run, before anything else asks for devices.

The exchange between them (`processes.exchange`) is ours, the devices are joined
by `jax.distributed`; this is the only module of the room that loads JAX.
"""

import contextlib
import json
import os
import socket
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from steppo_jax.processes import exchange, signals
from steppo_jax.processes.hosts import ALONE, Hosts

# How long the first process may take to start.
_START_S = 300.0
# How long after the first the last may come when all were asked to stop; clouds
# give 30 seconds.
_STOP_LIMIT_S = 8.0


class Addresses(NamedTuple):
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
  def lost(self) -> exchange.Lost | None:
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

  def close(self, failed: str | None = None, status: int = 0) -> None:
    self._client.close(failed, status)
    if self._server is not None:
      self._server.close()


def join(addresses: Addresses, handler: signals.Handler) -> Hosts:
  """Starts `jax.distributed` and connects the processes.

  Called before anything else asks JAX for devices.

  Args:
    addresses: Where the others are.
    handler: Installed already. It stops the main thread when another process
      is lost or was asked to stop.

  Raises:
    ValueError: the flags are incomplete.
    RuntimeError: the others are not found in time.
  """
  _check(addresses)
  # XLA would take SIGTERM for itself and go on.
  with contextlib.suppress(AttributeError):
    jax.config.update("jax_enable_preemption_service", False)
  # One that is lost is for the exchange to notice, which names it; XLA would
  # abort the others.
  with contextlib.suppress(AttributeError):
    jax.config.update("jax_enable_recoverability", True)
  server = client = None
  try:
    if addresses.coordinator is not None and addresses.processes > 1:
      # First of all, as JAX waits for those that do not come, and names nobody.
      if addresses.process == 0:
        server = _listen(addresses)
      client = _connect(addresses, handler)
    try:
      jax.distributed.initialize(
        addresses.coordinator, addresses.processes, addresses.process
      )
    except Exception as error:  # Whatever its parts raise.
      raise RuntimeError(f"jax.distributed: {error}") from error
  except BaseException as error:
    _give_up(error, client, server)
    raise
  handler.install()
  if jax.process_count() == 1:
    return ALONE
  if jax.default_backend() == "cpu":
    # A program that is read from the cache does not keep the order of its
    # collective operations on CPUs (jaxlib 0.10.2): one process would meet
    # another in a different one, and abort or wait for ever.
    jax.config.update("jax_enable_compilation_cache", False)
  if client is None:
    server, (host, port) = _meet(addresses)
    client = _client(host, port, jax.process_index(), addresses, handler)
  return _Many(client, server)


def _listen(addresses: Addresses) -> exchange.Server:
  """The exchange of a run whose first process this is."""
  host, port = _door(addresses)
  if not socket.gethostbyname(host).startswith("127."):
    host = ""  # Its name may be that of a service before this machine.
  return exchange.Server(host, port, addresses.processes)


def _connect(addresses: Addresses, handler: signals.Handler) -> exchange.Client:
  """Meets the others at the exchange, before JAX does at the coordinator.

  Raises:
    ValueError: they do not expect the same number of processes.
    RuntimeError: there is no first process.
    exchange.Lost: one of the others does not come.
  """
  host, port = _door(addresses)
  limit = min(addresses.limit_s, _START_S)
  _await(host, port, addresses.coordinator, limit)
  client = _client(host, port, addresses.process, addresses, handler)
  own = addresses.processes
  found = client.gather("the start", b"%d" % own, limit_s=limit)
  for index, other in enumerate(map(int, found)):
    if other != own:
      raise ValueError(
        f"--processes: process {index} has {other}, process "
        f"{addresses.process} has {own}"
      )
  if addresses.process:
    # It listens a moment later.
    _await(*_split(addresses.coordinator), addresses.coordinator, limit)
  return client


def _client(
  host: str,
  port: int,
  index: int,
  addresses: Addresses,
  handler: signals.Handler,
) -> exchange.Client:
  return exchange.Client(
    host, port, index, limit_s=addresses.limit_s, interrupt=handler.interrupt,
    orphaned=_end,
  )  # fmt: skip


def _give_up(
  error: BaseException,
  client: exchange.Client | None,
  server: exchange.Server | None,
) -> None:
  """Tells the others, who would wait for this process."""
  if client is not None:
    failed = None if isinstance(error, signals.Stopped) else str(error)
    client.close(failed, 2 if isinstance(error, ValueError) else 1)
  if server is not None:
    server.close()


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(":")
  return host, int(port)


def _door(addresses: Addresses) -> tuple[str, int]:
  """Where the first process listens."""
  host, port = _split(addresses.coordinator)
  return host, addresses.port or port + 1


def _meet(
  addresses: Addresses,
) -> tuple[exchange.Server | None, tuple[str, int]]:
  """The same where JAX knows the way: the first one tells by the devices."""
  server, sent = None, np.zeros(64, np.uint8)
  if jax.process_index() == 0:
    server = exchange.Server("", addresses.port, jax.process_count())
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


def _await(host: str, port: int, coordinator: str, limit_s: float) -> None:
  """Returns when the first process listens; JAX would abort this one."""
  deadline = time.monotonic() + limit_s
  while True:
    try:
      socket.create_connection((host, port), timeout=5.0).close()
      return
    except OSError as error:
      if time.monotonic() > deadline:
        raise RuntimeError(
          f"no process answers at --coordinator {coordinator} (port {port}): "
          f"{error}"
        ) from error
    time.sleep(0.2)


def _end(lost: exchange.Lost) -> None:
  """Without the first process XLA ends this one, unless it has ended before."""
  with contextlib.suppress(OSError):
    os.write(sys.stderr.fileno(), f"\n{lost.message}\n".encode())
  os._exit(lost.status)


def _check(addresses: Addresses) -> None:
  given = [addresses.coordinator, addresses.processes, addresses.process]
  if any(x is None for x in given) and any(x is not None for x in given):
    raise ValueError("--coordinator, --processes and --process belong together")
  if addresses.coordinator is not None:
    _, colon, port = addresses.coordinator.rpartition(":")
    if not colon or not port.isdecimal():
      raise ValueError(
        f"--coordinator takes HOST:PORT, got {addresses.coordinator!r}"
      )
    if not 0 <= addresses.process < addresses.processes:
      raise ValueError(
        f"--process {addresses.process} is none of 0 to "
        f"{addresses.processes - 1}"
      )
  if addresses.limit_s <= 0:
    raise ValueError(f"--host-limit {addresses.limit_s:g} must be above 0")
