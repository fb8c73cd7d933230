"""Frames: how processes speak on a socket or pipe.

A frame is

    length     8 bytes, little endian: bytes of the rest
    head       a line of JSON, an object
    payload    bytes

Journals hold heads and payloads too, behind a length and a digest of their own
(`rollout.codec`).
"""

import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

_LENGTH = struct.Struct("<Q")
_MOST = 1 << 36


def pack(
  head: Mapping[str, Any],
  data: bytes = b"",
  *,
  default: Callable[[Any], Any] | None = None,
) -> bytes:
  """A head and a payload in one.

  Args:
    head: JSON-able. Text may hold anything, lone surrogates included.
    data: The payload.
    default: Makes something else JSON-able, as `json.dumps` takes it.

  Raises:
    TypeError: the head is not JSON-able.
  """
  return json.dumps(head, default=default).encode("ascii") + b"\n" + data


def unpack(body: bytes) -> tuple[dict[str, Any], bytes]:
  """The head and the payload that `pack` was given.

  Raises:
    ValueError: the head is no line of JSON, or no object.
  """
  line, _, data = body.partition(b"\n")
  head = json.loads(line)
  if not isinstance(head, dict):
    raise ValueError(f"a frame whose head is no object: {str(head)[:80]}")
  return head, data


def frame(body: bytes) -> bytes:
  """What `pack` made, with its length in front."""
  return _LENGTH.pack(len(body)) + body


class Stream:
  """Takes frames out of a stream of bytes that comes in pieces.

  Args:
    most: A frame of more bytes is refused at its length.
  """

  def __init__(self, most: int):
    self._most = most
    self._bytes = bytearray()

  def add(self, data: bytes) -> None:
    """Takes in what has been read."""
    self._bytes += data

  def next(self) -> tuple[dict[str, Any], bytes] | None:
    """Head and payload of the next whole frame, None if it is still to come.

    Raises:
      ValueError: the stream holds no frames.
    """
    if len(self._bytes) < _LENGTH.size:
      return None
    (length,) = _LENGTH.unpack_from(self._bytes)
    if length > self._most:
      raise ValueError(f"a frame of {length} bytes; at most {self._most}")
    end = _LENGTH.size + length
    if len(self._bytes) < end:
      return None
    body = bytes(self._bytes[_LENGTH.size : end])
    del self._bytes[:end]
    return unpack(body)


def send(sock: socket.socket, head: dict[str, Any], data: bytes = b"") -> None:
  """Writes a frame.

  Raises:
    OSError: the connection has ended, or takes nothing for its time limit.
  """
  line = pack(head)
  # Not joined: a payload may be large.
  sock.sendall(_LENGTH.pack(len(line) + len(data)) + line)
  if data:
    sock.sendall(data)


def _take(sock: socket.socket, size: int) -> bytes:
  parts = []
  while size:
    part = sock.recv(min(size, 1 << 20))
    if not part:
      raise ConnectionError("its connection ended")
    parts.append(part)
    size -= len(part)
  return b"".join(parts)


def receive(sock: socket.socket) -> tuple[dict[str, Any], bytes]:
  """Reads a frame: its head, which has a "kind", and its payload.

  Raises:
    TimeoutError: nothing came for the time limit of the socket.
    ConnectionError: the connection has ended, or what came is no frame.
  """
  (length,) = _LENGTH.unpack(_take(sock, _LENGTH.size))
  if length > _MOST:
    raise ConnectionError("it does not speak this protocol")
  try:
    head, data = unpack(_take(sock, length))
    head["kind"]
  except (ValueError, KeyError):
    raise ConnectionError("it does not speak this protocol") from None
  return head, data
