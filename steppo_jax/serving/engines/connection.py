"""One server over HTTP: requests that are sent again, and files that go on."""

import contextlib
import http.client
import json
import logging
import pathlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)

# A server that was reached takes no longer to be reached again.
_CONNECT_S = 10.0
# Times that what failed is tried, and seconds before the second time, which
# double.
_ATTEMPTS, _BACK_OFF_S = 4, 0.1
# Bytes of a file that are sent at once.
_BLOCK = 1 << 20
# Of an answer: a response of a million tokens with its log-probs.
_MOST_BYTES = 1 << 28


class Lost(Exception):
  """A server does not answer, or says that it cannot."""


class Refused(RuntimeError):
  """A server does not take what it was sent, however often.

  Attributes:
    status: Of HTTP.
  """

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


class Connection:
  """A server that any number of threads may ask.

  Each request under way has a connection of its own, which is kept for the
  next.

  Attributes:
    address: Of the server.
  """

  def __init__(self, address: str, *, key: str | None, seconds: float):
    """Nothing is sent yet.

    Args:
      address: Such as http://HOST:PORT; a path may follow.
      key: Sent as `Authorization: Bearer KEY`, None for none.
      seconds: That an answer may take.

    Raises:
      ValueError: the address is none.
    """
    parts = urllib.parse.urlsplit(address)
    try:
      self._port = parts.port
    except ValueError as error:
      raise ValueError(f"engines.addresses: {address!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(
        f"engines.addresses: {address!r} must be http://HOST:PORT"
      )
    self.address = address.rstrip("/")
    self._host, self._path = parts.hostname, parts.path.rstrip("/")
    self._kind = (
      http.client.HTTPSConnection
      if parts.scheme == "https"
      else http.client.HTTPConnection
    )
    self._headers = {"Authorization": f"Bearer {key}"} if key else {}
    self._seconds = seconds
    self._idle: list[http.client.HTTPConnection] = []
    self._busy: set[http.client.HTTPConnection] = set()
    self._lock = threading.Lock()
    self._closed = False

  def anew(self, seconds: float) -> "Connection":
    """The same server with another limit, also after this one is closed."""
    made = Connection(self.address, key=None, seconds=seconds)
    made._headers = self._headers
    return made

  def ask(
    self, method: str, path: str, body: Any = None, *, attempts: int = _ATTEMPTS
  ) -> Any:
    """What the server answers.

    It is asked again after it broke off or failed, and after the time that it
    names where it is full: what is asked for has to bear that.

    Args:
      method: Of HTTP.
      path: Behind the address.
      body: Is sent as JSON; None for no body.
      attempts: Times that it may fail before it is lost.

    Returns:
      What JSON the answer holds; its text if it holds none.

    Raises:
      Lost: it gives no answer.
      Refused: it does not take the request.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    end = time.monotonic() + self._seconds
    failed = 0
    while True:
      try:
        status, text, after = self._once(method, path, data, headers)
      except TimeoutError as error:
        raise Lost(f"no answer within {self._seconds:g} s") from error
      except (OSError, http.client.HTTPException) as error:
        status, text, after = 0, f"{type(error).__name__}: {error}", None
      if status == 429 and time.monotonic() < end and not self._closed:
        time.sleep(min(_number(after, _BACK_OFF_S), 10.0))
        continue
      if 0 < status < 500 and status not in (408, 429):
        return self._read(status, text)
      failed += 1
      if failed == attempts or self._closed:
        raise Lost(f"{status}: {_message(text)}" if status else text)
      time.sleep(_BACK_OFF_S * 2 ** (failed - 1))

  def send(self, path: str, file: pathlib.Path, offset: int) -> tuple[int, str]:
    """Sends what stands in a file from some byte on, once.

    Returns:
      Status and text of the answer.

    Raises:
      OSError: the connection breaks off.
      http.client.HTTPException: the same.
    """
    size = file.stat().st_size - offset
    with open(file, "rb") as body:
      body.seek(offset)
      status, text, _ = self._once(
        "PATCH", path, body,
        {"Content-Length": str(size), "Upload-Offset": str(offset)},
        fresh=True,
      )  # fmt: skip
    return status, text

  def close(self) -> None:
    """Breaks off what is under way; nothing is sent any more."""
    with self._lock:
      self._closed = True
      for one in self._idle:
        one.close()
      self._idle.clear()
      for one in self._busy:  # Whoever reads from it closes it.
        with contextlib.suppress(OSError, AttributeError):
          one.sock.shutdown(socket.SHUT_RDWR)

  def _read(self, status: int, text: str) -> Any:
    if status != 200:
      raise Refused(status, f"{self.address}: {status}: {_message(text)}")
    try:
      return json.loads(text)
    except ValueError:
      return text

  def _once(
    self,
    method: str,
    path: str,
    body: Any,
    headers: Mapping[str, str],
    *,
    fresh: bool = False,
  ) -> tuple[int, str, str | None]:
    """Asks once: status, text, and after which time to ask again."""
    kept = None
    with self._lock:
      if self._closed:
        raise OSError("the engine was closed")
      if self._idle and not fresh:
        kept = self._idle.pop()
    if kept is not None:
      # The server may have closed it since.
      with contextlib.suppress(ConnectionError):
        return self._over(kept, method, path, body, headers)
    made = self._kind(
      self._host, self._port, timeout=_CONNECT_S, blocksize=_BLOCK
    )
    made.connect()
    return self._over(made, method, path, body, headers)

  def _over(self, one, method, path, body, headers):
    keep = False
    with self._lock:
      if self._closed:  # While it connected.
        one.close()
        raise OSError("the engine was closed")
      self._busy.add(one)
    try:
      one.sock.settimeout(self._seconds)
      one.request(method, self._path + path, body, self._headers | headers)
      answer = one.getresponse()
      text = answer.read(_MOST_BYTES + 1)
      if len(text) > _MOST_BYTES:
        raise http.client.HTTPException(
          f"an answer of more than {_MOST_BYTES} bytes"
        )
      keep = not answer.will_close
      return (
        answer.status, text.decode("utf-8", "replace"),
        answer.headers.get("Retry-After"),
      )  # fmt: skip
    finally:
      with self._lock:
        self._busy.discard(one)
        if keep and not self._closed:
          self._idle.append(one)
        else:
          one.close()


def _number(text: str | None, otherwise: float) -> float:
  try:
    return max(float(text), 0.0)
  except (TypeError, ValueError):
    return otherwise


def _message(text: str) -> str:
  """What an error says, in the forms that servers give it."""
  try:
    found = json.loads(text)
    found = found.get("error", found)
    return str(found["message"] if isinstance(found, dict) else found)[:500]
  except (ValueError, AttributeError, KeyError):
    return text[:500]
