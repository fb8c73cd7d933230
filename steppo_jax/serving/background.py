"""A server on a thread of its own, beside what its process does otherwise."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Coroutine
from typing import Any

import uvicorn
from uvicorn.protocols.http import h11_impl

from steppo_jax.rollout import agents

# A connection that is not used is closed so late that clients do it before
# (httpx after 5 s, as uvicorn would): none is closed as it is used again.
_KEPT_S = 75


def listen(
  host: str, port: int, *, key: str | None, option: str
) -> socket.socket:
  """A socket at an address, which may be reached from elsewhere with a key.

  Args:
    host: Of the address.
    port: Of the address; 0 takes a free one.
    key: What clients have to send, None for nothing.
    option: How the options of host and port begin, such as "--", for errors.

  Raises:
    ValueError: it cannot be listened on, or needs a key.
  """
  if not key and not _is_loopback(host):
    raise ValueError(
      f"{option}host={host} is reached from elsewhere: set "
      f"{agents.SECRET} to a secret that clients send"
    )
  try:
    if not 0 <= port < 2**16:  # Higher numbers wrap around.
      raise OverflowError("a port is a number from 0 to 65535")
    family, *_, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM
    )[0]
    return socket.create_server(address, family=family, backlog=1024)
  except (OSError, OverflowError) as error:
    raise ValueError(
      f"{option}host={host} {option}port={port} cannot be listened on: {error}"
    ) from error


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def url_of(listening: socket.socket) -> str:
  """The address of a server."""
  host, port = listening.getsockname()[:2]
  return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Patient(h11_impl.H11Protocol):
  """A connection to a client that has so much patience, and no more.

  One that sends no whole head of a request is closed, and so is one that does
  not read what is sent to it; a body is bounded where it is read (`http`).

  The parser is h11. With uvicorn's other one, httptools, the body of a request
  that offers HTTP/2 is lost (Kludex/uvicorn issue 2722), and Java's own client
  offers that with every one.
  """

  head_s, read_s = 30.0, 60.0
  _head: asyncio.TimerHandle | None = None
  _read: asyncio.TimerHandle | None = None

  def connection_made(self, transport: asyncio.Transport) -> None:
    super().connection_made(transport)
    # An answer's body would else wait until its head is acknowledged, 40 ms
    # later. uvloop does this by itself; asyncio knows such sockets only if they
    # were made as TCP by name.
    connected = transport.get_extra_info("socket")
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._watch_head()

  def _unsupported_upgrade_warning(self) -> None:
    """Says nothing: every request of Java's client would be warned of."""

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    self._watch_head()

  def connection_lost(self, exc: Exception | None) -> None:
    self._head = _ended(self._head)
    self._read = _ended(self._read)
    super().connection_lost(exc)

  def pause_writing(self) -> None:
    super().pause_writing()
    self._read = self.loop.call_later(self.read_s, self.transport.abort)

  def resume_writing(self) -> None:
    self._read = _ended(self._read)
    super().resume_writing()

  def _watch_head(self) -> None:
    if self.cycle is not None and not self.cycle.response_complete:
      self._head = _ended(self._head)
    elif self._head is None:
      self._head = self.loop.call_later(self.head_s, self.transport.close)


def _ended(timer: asyncio.TimerHandle | None) -> None:
  if timer is not None:
    timer.cancel()


def config(app: Any) -> uvicorn.Config:
  """How an application is served.

  Args:
    app: An ASGI application.
  """
  return uvicorn.Config(
    app, http=_Patient, log_level="warning", timeout_graceful_shutdown=1,
    timeout_keep_alive=_KEPT_S,
  )  # fmt: skip


class Background:
  """Serves an application until it is closed.

  Attributes:
    url: Its address.
  """

  def __init__(self, app: Any, listening: socket.socket):
    """Starts the thread; returns when requests are answered.

    Args:
      app: An ASGI application.
      listening: A socket at an address.

    Raises:
      RuntimeError: the application does not start.
    """
    self.url = url_of(listening)
    self._server = uvicorn.Server(config(app))
    self._listening = listening
    self._started = threading.Event()
    self._loop: asyncio.AbstractEventLoop | None = None
    self._thread = threading.Thread(
      target=self._run, name="server", daemon=True
    )
    self._thread.start()
    self._started.wait()
    if not self._server.started:
      raise RuntimeError(f"the server at {self.url} does not start")

  def _run(self) -> None:
    try:
      factory = self._server.config.get_loop_factory()
      with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(self._serve())
    finally:
      self._started.set()

  async def _serve(self) -> None:
    self._loop = asyncio.get_running_loop()
    watching = asyncio.create_task(self._watch())
    try:
      await self._server.serve([self._listening])
    finally:
      watching.cancel()

  async def _watch(self) -> None:
    while not self._server.started:
      await asyncio.sleep(0.01)
    self._started.set()

  def call(self, work: Coroutine[Any, Any, Any]) -> Any:
    """Runs something on the server's event loop; returns what it gives."""
    return asyncio.run_coroutine_threadsafe(work, self._loop).result()

  def close(self) -> None:
    """Ends the server."""
    self._server.should_exit = True
    self._thread.join()
    self._listening.close()
