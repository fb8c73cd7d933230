"""A wire that breaks: passes bytes on to a server, some connections up to a
number of bytes."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Wire:
  """Passes connections on to an address.

  Attributes:
    url: Where to ask instead of it.
    passed: Bytes that went to the server, so far.
    cut: Numbers of bytes after which connections with more of them break off,
      one after the other.
  """

  def __init__(self, url: str):
    host, _, port = url.removeprefix("http://").partition(":")
    self._to = host, int(port)
    self._listening = socket.create_server(("127.0.0.1", 0))
    self.url = f"http://{host}:{self._listening.getsockname()[1]}"
    self.passed = 0
    self.cut: list[int] = []
    self._lock = threading.Lock()
    self._open: list[socket.socket] = []
    threading.Thread(target=self._accept, daemon=True).start()

  def _accept(self) -> None:
    while True:
      try:
        client, _ = self._listening.accept()
      except OSError:
        return
      server = socket.create_connection(self._to)
      self._open += [client, server]
      for one, other, counts in (client, server, True), (server, client, False):
        threading.Thread(
          target=self._pass, args=(one, other, counts), daemon=True
        ).start()

  def _pass(self, one, other, counts) -> None:
    came = 0
    with contextlib.suppress(OSError):
      while data := one.recv(1 << 14):
        if counts:
          with self._lock:
            came += len(data)
            self.passed += len(data)
            if self.cut and came > self.cut[0]:
              self.cut.pop(0)
              break
        other.sendall(data)
    for end in (one, other):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

  def close(self) -> None:
    """Ends all connections."""
    self._listening.close()
    for one in self._open:
      one.close()


@contextlib.contextmanager
def wire(url: str) -> Iterator[Wire]:
  """A wire that ends with the context."""
  with contextlib.closing(Wire(url)) as made:
    yield made
