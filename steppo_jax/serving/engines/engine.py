"""An engine whose responses servers sample."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from steppo_jax import types
from steppo_jax.processes import waits
from steppo_jax.serving.engines import connection
from steppo_jax.serving.engines import servers as servers_lib

_log = logging.getLogger(__name__)

# Seconds that `poll` waits for a response before it returns without one.
_POLL_S = 0.05


class Prepared(NamedTuple):
  """Weights that servers have, and do not sample with yet.

  Attributes:
    package: What was sent.
    servers: Who has it.
  """

  package: servers_lib.Package
  servers: tuple[servers_lib.Server, ...]


class HttpEngine:
  """Samples with any number of servers; implements `types.Engine`.

  An episode stays on one server, which keeps what it has read of its prompts.
  Where a server does not answer, its requests are asked of another one: nothing
  but the prompt belongs to a server. It is used again once it has taken weights
  that are handed over. That none is left is an error.

  Attributes:
    num_slots: Most responses under way at once, over all servers.
    counters: What has been done so far. How much of a prompt a server did not
      read anew is not known here: all of it counts as read.
  """

  compiles = 0

  def __init__(
    self,
    all_servers: Sequence[servers_lib.Server],
    pack: Callable[[Any], servers_lib.Package],
    forget: Callable[[servers_lib.Package], None],
  ):
    """Asks every server what it is.

    Args:
      all_servers: The servers.
      pack: Makes weights ready to be sent, of parameters on any devices.
      forget: Called with what no server needs any more.

    Raises:
      ValueError: a server does not fit the run.
      RuntimeError: none answers.
    """
    self._pack, self._forget = pack, forget
    self._lock = threading.Lock()
    self._why: dict[str, str] = {}
    self._all = tuple(all_servers)
    try:
      self._slots = self._each(lambda one: one.connect(), self._all)
    except BaseException:
      for one in self._all:
        one.close()
      raise
    self._alive = set(self._slots)
    self.num_slots = sum(self._slots.values())
    self.counters = types.EngineCounters()
    self._threads = futures.ThreadPoolExecutor(self.num_slots, "engine")
    self._done: queue.SimpleQueue = queue.SimpleQueue()
    self._under_way = 0
    self._of: dict[str, servers_lib.Server] = {}
    self._packages: list[servers_lib.Package] = []
    self._version: int | None = None

  @property
  def version(self) -> int | None:
    """See `types.Engine`."""
    return self._version

  def set_params(self, params: Any, version: int) -> None:
    """See `types.Engine`.

    Raises:
      RuntimeError: responses are under way, or no server takes the weights.
    """
    self._require_rest()
    self.swap(self.prepare(params), version)

  def prepare(self, params: Any) -> Prepared:
    """Sends weights to all servers; see `types.Engine`.

    Raises:
      RuntimeError: none takes them.
    """
    package = self._pack(params)
    self._packages.append(package)

    def send(one):
      if one not in self._slots:  # It did not answer at first.
        self._slots[one] = one.connect()
      one.send(package)

    return Prepared(package, tuple(self._each(send, self._all)))

  def swap(self, prepared: Prepared, version: int) -> None:
    """Has all servers sample with the weights; see `types.Engine`.

    Raises:
      RuntimeError: responses are under way, or no server answers.
    """
    self._require_rest()
    package = prepared.package
    use = lambda one: one.use(package, version)
    self._alive = set(self._each(use, prepared.servers))
    self._version = version
    # What was prepared later is to be used later.
    while self._packages[0] is not package:
      old = self._packages.pop(0)
      if all(one.name != old.name for one in self._packages):
        self._forget(old)

  def warm_up(self) -> None:
    """Nothing to do: programs are the servers' own."""

  def submit(self, requests: Sequence[types.Request]) -> None:
    """See `types.Engine`.

    Raises:
      RuntimeError: there are no weights yet.
    """
    if self._version is None:
      raise RuntimeError("set_params must be called before submit")
    for request in requests:
      self._under_way += 1
      self.counters.prompt_tokens += len(request.prompt_ids)
      self.counters.prefill_tokens += len(request.prompt_ids)
      self._threads.submit(self._work, request)

  def poll(self) -> list[tuple[types.Request, types.Response]]:
    """See `types.Engine`.

    Raises:
      RuntimeError: no server is left, one sampled with other weights than it
        was asked to, or does not take a request.
    """
    if not self._under_way:
      return []
    found = []
    try:
      found.append(self._done.get(timeout=_POLL_S))
      while True:
        found.append(self._done.get_nowait())
    except queue.Empty:
      pass
    self._under_way -= len(found)
    for _, response in found:
      if isinstance(response, BaseException):
        raise response
      self.counters.decode_steps += len(response.response_ids)
      self.counters.decode_tokens += len(response.response_ids)
    return found

  def release(self, session: str) -> None:
    """See `types.Engine`."""
    with self._lock:
      self._of.pop(session, None)

  def close(self) -> None:
    """Breaks off what is under way; servers forget what was sent to them."""
    try:
      self._threads.shutdown(wait=False, cancel_futures=True)
      with futures.ThreadPoolExecutor(len(self._all)) as threads:
        list(threads.map(lambda one: one.close(), self._all))
      self._threads.shutdown()
    finally:
      for package in self._packages:
        self._forget(package)
      self._packages.clear()

  def _work(self, request: types.Request) -> None:
    try:
      response: Any = self._answer(request)
    except BaseException as error:
      response = error
    self._done.put((request, response))

  def _answer(self, request: types.Request) -> types.Response:
    while True:
      server = self._server(request.session)
      try:
        whom = f"server {server.address}"
        with waits.on(waits.SAMPLER, whom, f"episode {request.session}"):
          return server.answer(request)
      except connection.Lost as error:
        self._lost(server, error)

  def _server(self, session: str) -> servers_lib.Server:
    """Whom a session asks: the same as before, or the one with most room."""
    with self._lock:
      found = self._of.get(session)
      if found in self._alive:
        return found
      if not self._alive:
        raise RuntimeError(self._none_left())
      counts = dict.fromkeys(self._alive, 0)
      for one in self._of.values():
        if one in counts:
          counts[one] += 1
      # In the order of the addresses where two have as much room.
      free = lambda one: counts[one] / self._slots[one]
      self._of[session] = min(
        (one for one in self._all if one in counts), key=free
      )
      return self._of[session]

  def _lost(self, server: servers_lib.Server, error: Exception) -> None:
    with self._lock:
      self._why[server.address] = str(error)
      if server not in self._alive:
        return
      self._alive.discard(server)
    _log.warning(
      "%s does not answer (%s): what it was asked is asked of others, and it "
      "is tried again with the next weights", server.address, error,
    )  # fmt: skip

  def _each(self, call: Callable, of: Sequence[Any]) -> dict[Any, Any]:
    """Calls something with each server, side by side; who answered, and what.

    Raises:
      RuntimeError: none has answered.
    """
    if not of:
      raise RuntimeError(self._none_left())
    found = {}
    with futures.ThreadPoolExecutor(len(of)) as threads:
      calls = [(one, threads.submit(call, one)) for one in of]
      for one, made in calls:
        try:
          whom = f"server {one.address}"
          with waits.on(waits.SAMPLER, whom, "its weights"):
            found[one] = made.result()
        except connection.Lost as error:
          with self._lock:
            self._why[one.address] = str(error)
          _log.warning("%s does not answer (%s)", one.address, error)
    if not found:
      raise RuntimeError(self._none_left())
    return found

  def _none_left(self) -> str:
    told = "; ".join(f"{where}: {why}" for where, why in self._why.items())
    return f"no server of engines.addresses answers: {told}"

  def _require_rest(self) -> None:
    if self._under_way:
      raise RuntimeError(
        f"{self._under_way} responses are under way: poll until they have "
        "ended before the weights change"
      )
