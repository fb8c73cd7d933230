"""Small messages between the processes of a run, with time limits.

Every process is connected to the first one, which waits until all have sent
their part of something and then hands all parts to all. It knows who is
missing: a process that ends is noticed at once, one that is silent or late
after a limit, and the others are told its number.

This module imports no JAX.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from steppo_jax.processes import frames, signals

# Seconds that the last may come after the first: a rollout, an evaluation.
LIMIT_S = 1800.0
# A living process says something this often, and is given up after so long.
BEAT_S = 2.0
SILENCE_S = 60.0
# How long the others have to come to the same error as one that failed, such as
# an option that all of them refuse, until they are stopped for its sake.
FAILED_S = 10.0


class Lost(signals.Stopped):
  """A process of the run is gone; the others cannot go on without it.

  Args:
    who: Its name, and what became of it.
    status: What it told that it exits with; for one that was killed, that of a
      run that goes on when it is started again.
  """

  def __init__(self, who: str, status: int = signals.RESTARTABLE):
    super().__init__(who)
    self.status = status


class Server:
  """Hands parts on; lives in the first process, in threads of its own.

  Attributes:
    port: Where it listens.

  Args:
    host: Address to listen on, "" for all of this machine's.
    port: 0 takes a free one.
    count: Number of processes.
    silence_s: A process that says nothing for so long is given up.
    failed_s: How long after one process failed the others are stopped.

  Raises:
    RuntimeError: the port is taken, or the address not this machine's.
  """

  def __init__(
    self,
    host: str,
    port: int,
    count: int,
    *,
    silence_s: float = SILENCE_S,
    failed_s: float = FAILED_S,
  ):
    self._count = count
    self._silence_s = silence_s
    self._failed_s = failed_s
    self._lock = threading.Lock()
    self._clients: dict[int, socket.socket] = {}
    self._left: set[int] = set()
    # The first that failed: when, and what is told of it.
    self._failure: tuple[float, dict[str, Any]] | None = None
    # Parts by what they are of: when the first came, its limit, all there are.
    self._sets: dict[str, tuple[float, float, dict[int, bytes]]] = {}
    self._begun = False  # Have all been there once?
    self._stopped = False
    # What those who come later have missed: a loss, a stop.
    self._news: list[dict[str, Any]] = []
    try:
      self._listener = socket.create_server((host, port))
    except OSError as error:
      raise RuntimeError(
        f"cannot listen for the other processes at {host}:{port} "
        f"({error.strerror}); choose another --host-port"
      ) from error
    self.port = self._listener.getsockname()[1]
    self._ended = threading.Event()
    for target in (self._accept, self._watch):
      threading.Thread(target=target, daemon=True).start()

  def _accept(self) -> None:
    with contextlib.suppress(OSError):  # The listener was closed.
      while True:
        sock, _ = self._listener.accept()
        threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

  def _serve(self, sock: socket.socket) -> None:
    """Reads what one process sends."""
    sock.settimeout(self._silence_s)
    index = None
    try:
      head, _ = frames.receive(sock)
      index = head.get("index")
      with self._lock:
        if head["kind"] != "hello" or (refusal := self._refusal(index)):
          index = None
          if head["kind"] == "hello":
            who, status = refusal
            frames.send(sock, {"kind": "lost", "who": who, "index": 0,
                               "status": status})  # fmt: skip
          raise ConnectionError("it is no process of this run")
        self._clients[index] = sock
        for news in self._news:
          frames.send(sock, news)
      while True:
        head, data = frames.receive(sock)
        if head["kind"] == "bye":
          self._leave(index, head)
          return
        self._handle(index, head, data)
    except TimeoutError:
      self._gone(index, "was silent")
    except OSError:
      self._gone(index, "has ended")
    finally:
      sock.close()

  def _refusal(self, index: Any) -> tuple[str, int] | None:
    """Why a process with this number cannot take part, and its exit status."""
    if not isinstance(index, int) or not 0 <= index < self._count:
      return (
        f"the first process, which expects {self._count} processes and no "
        f"process {index}"
      ), 2
    if index not in self._clients:
      return None
    if self._begun:
      # It takes the place of one that is gone, of which nobody knows yet.
      return (
        f"the first process, whose run has begun with another process {index}"
      ), signals.RESTARTABLE
    return (
      f"the first process, which has a process {index} already: give each "
      "its own --process"
    ), 2

  def _handle(self, index: int, head: dict[str, Any], data: bytes) -> None:
    with self._lock:
      if head["kind"] == "stop" and not self._stopped:
        self._stopped = True
        self._sets.clear()
        self._tell({"kind": "stop"}, is_news=True)
      elif head["kind"] == "part" and self._stopped == head["after_stop"]:
        what, limit = head["what"], head["limit_s"]
        started = (time.monotonic(), limit, {})
        parts = self._sets.setdefault(what, started)[2]
        parts[index] = data
        if len(parts) == self._count:
          del self._sets[what]
          self._begun, self._stopped = True, False
          self._news.clear()
          whole = [parts[i] for i in range(self._count)]
          sizes = [len(part) for part in whole]
          self._tell({"kind": "all", "what": what, "sizes": sizes},
                     b"".join(whole))  # fmt: skip

  def _tell(
    self, head: dict[str, Any], data: bytes = b"", *, is_news: bool = False
  ) -> None:
    """To all; whoever cannot be told is noticed by its own thread."""
    if is_news:
      self._news.append(head)
    for sock in self._clients.values():
      with contextlib.suppress(OSError):
        frames.send(sock, head, data)

  def _watch(self) -> None:
    """Says that this process lives, and looks for parts that are late."""
    while not self._ended.wait(BEAT_S):
      with self._lock:
        self._tell({"kind": "beat"})
        now = time.monotonic()
        for what, (began, limit, parts) in self._sets.items():
          missing = set(range(self._count)) - parts.keys()
          if now - began > limit:
            self._lose(f"{_named(missing)}, not there for {what} "
                       f"{limit:g} s after the others")  # fmt: skip
            break
          if missing & self._left and self._failure is None:
            gone = missing & self._left
            self._lose(f"{_named(gone)}, which ended before {what}")
            break
        if self._failure and now - self._failure[0] > self._failed_s:
          self._stop_for_failure()

  def _leave(self, index: int, head: dict[str, Any]) -> None:
    with self._lock:
      self._left.add(index)
      del self._clients[index]
      if "failed" in head and self._failure is None:
        told = {
          "kind": "failed", "index": index, "status": head["status"],
          "who": f"process {index}, which failed: {head['failed']}",
        }  # fmt: skip
        self._failure = time.monotonic(), told
        self._tell(told, is_news=True)

  def _stop_for_failure(self) -> None:
    """Stops those that have not come to the same error meanwhile."""
    _, told = self._failure
    self._failure = None
    self._sets.clear()
    self._tell(told | {"kind": "lost"}, is_news=True)

  def _gone(self, index: int | None, reason: str) -> None:
    if index is None:
      return
    with self._lock:
      if self._clients.pop(index, None) is not None:
        self._lose(f"process {index}, which {reason}")

  def _lose(self, message: str) -> None:
    self._sets.clear()
    self._tell({"kind": "lost", "who": message}, is_news=True)

  def close(self, patience_s: float = 10.0) -> None:
    """Ends when all have left, or after a while."""
    deadline = time.monotonic() + patience_s
    while self._clients and time.monotonic() < deadline:
      time.sleep(0.02)
    self._ended.set()
    with self._lock:
      if self._failure is not None:
        self._stop_for_failure()
      for sock in (self._listener, *self._clients.values()):
        with contextlib.suppress(OSError):
          sock.shutdown(socket.SHUT_RDWR)  # Wakes who waits for it.
      self._listener.close()


def _named(indices) -> str:
  numbers = ", ".join(map(str, sorted(indices)))
  return f"process{'es' if len(indices) > 1 else ''} {numbers}"


def _asked() -> signals.Stopped:
  return signals.Stopped("another process, which was asked to stop")


class Client:
  """One process's end of the exchange.

  Attributes:
    lost: Who is missing, or has failed; None if nobody is.

  Args:
    host: Of the server.
    port: Of the server.
    index: Of this process.
    limit_s: Seconds that the last may come after the first.
    interrupt: Called by another thread, with what to raise, when the run must
      stop: it is to break off what the main thread does.
    orphaned: Called instead, and told why, when the first process is gone.
    silence_s: The server is given up when it says nothing for so long.

  Raises:
    RuntimeError: there is no server.
  """

  def __init__(
    self,
    host: str,
    port: int,
    index: int,
    *,
    limit_s: float,
    interrupt: Callable[[signals.Stopped], None] = lambda stopped: None,
    orphaned: Callable[[Lost], None] | None = None,
    silence_s: float = SILENCE_S,
  ):
    self._orphaned = orphaned
    self._limit_s = limit_s
    self._interrupt = interrupt
    self._changed = threading.Condition()
    self._results: dict[str, list[bytes]] = {}
    self._stopped = False
    self.lost: Lost | None = None
    self._left = self._broken_off = False
    try:
      self._sock = socket.create_connection((host, port), timeout=silence_s)
    except OSError as error:
      raise RuntimeError(
        f"the first process does not answer at {host}:{port}: {error}"
      ) from error
    # The main thread may be broken off anywhere, within a frame for one: it
    # never sends by itself.
    self._to_send: queue.SimpleQueue = queue.SimpleQueue()
    self._to_send.put(({"kind": "hello", "index": index}, b""))
    self._sender = threading.Thread(target=self._send_all, daemon=True)
    self._sender.start()
    threading.Thread(target=self._read_all, daemon=True).start()

  def _send_all(self) -> None:
    with contextlib.suppress(OSError):  # The reader notices.
      while True:
        try:
          head, data = self._to_send.get(timeout=BEAT_S)
        except queue.Empty:
          head, data = {"kind": "beat"}, b""
        frames.send(self._sock, head, data)
        if head["kind"] == "bye":
          return

  def _read_all(self) -> None:
    try:
      while True:
        head, data = frames.receive(self._sock)
        if head["kind"] in ("lost", "failed"):
          self._lose(
            Lost(head["who"], head.get("status", signals.RESTARTABLE)),
            alone=head.get("index") == 0,
            at_once=head["kind"] == "lost",
          )
        elif head["kind"] == "stop":
          with self._changed:
            self._stopped = True
            self._changed.notify_all()
          self._interrupt(_asked())
        elif head["kind"] == "all":
          self._take(head, data)
    except TimeoutError:
      self._lose(Lost("process 0, which was silent"), alone=True)
    except OSError:
      self._lose(Lost("process 0, which has ended"), alone=True)

  def _take(self, head: dict[str, Any], data: bytes) -> None:
    parts, start = [], 0
    for size in head["sizes"]:
      parts.append(data[start : start + size])
      start += size
    with self._changed:
      self._results[head["what"]] = parts
      self._stopped = False
      self._changed.notify_all()

  def _lose(
    self, lost: Lost, *, alone: bool = False, at_once: bool = True
  ) -> None:
    """Wakes the main thread where it waits for the others.

    Args:
      lost: Who is missing.
      alone: Whether it is the first process.
      at_once: Whether to break off whatever else the main thread does.
    """
    with self._changed:
      if self._left:
        return
      self.lost = lost = self.lost or lost
      self._changed.notify_all()
    if not at_once or self._broken_off:
      return
    self._broken_off = True
    if alone and self._orphaned is not None:
      self._orphaned(lost)
    self._interrupt(lost)

  def gather(
    self,
    what: str,
    part: bytes,
    *,
    after_stop: bool = False,
    limit_s: float | None = None,
  ) -> list[bytes]:
    """Gives this process's part and waits for those of the others.

    Args:
      what: Its name, the same in all processes.
      part: Of this process.
      after_stop: What is still agreed on once a stop was asked for.
      limit_s: Seconds that the last may come after the first; None for the
        limit of all.

    Returns:
      The parts of all processes in their order.

    Raises:
      Lost: one is missing; it is named.
      signals.Stopped: one of them was asked to stop.
    """
    head = {"kind": "part", "what": what, "after_stop": after_stop,
            "limit_s": limit_s or self._limit_s}  # fmt: skip
    self._to_send.put((head, part))
    with self._changed:
      self._changed.wait_for(
        lambda: (
          what in self._results
          or self.lost is not None
          or (self._stopped and not after_stop)
        )
      )
      if what in self._results:
        return self._results.pop(what)
      if self.lost is not None:
        raise self.lost
    raise _asked()

  def stop(self) -> None:
    """Asks all processes to stop."""
    self._to_send.put(({"kind": "stop"}, b""))

  def close(self, failed: str | None = None, status: int = 0) -> None:
    """Leaves; the others do not take it for lost.

    Args:
      failed: Why it leaves, if it has failed. The others are stopped for it,
        unless they leave too.
      status: What it exits with then.
    """
    with self._changed:
      self._left = True
    head: dict[str, Any] = {"kind": "bye"}
    if failed is not None:
      head |= {"failed": failed, "status": status}
    self._to_send.put((head, b""))
    self._sender.join(5.0)
    self._sock.close()
