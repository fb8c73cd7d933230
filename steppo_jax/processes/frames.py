"""Frames of the exchange between processes, on a socket.

A frame is

    length     8 bytes, little endian: bytes of the rest
    head       a line of JSON
    payload    bytes
"""

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")
_MOST = 1 << 36


def send(sock: socket.socket, head: dict[str, Any], data: bytes = b"") -> None:
  """Writes a frame.

  Raises:
    OSError: the connection has ended, or takes nothing for its time limit.
  """
  line = json.dumps(head).encode() + b"\n"
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
  line, _, data = _take(sock, length).partition(b"\n")
  try:
    head = json.loads(line)
    head["kind"]
  except (ValueError, KeyError, TypeError):
    raise ConnectionError("it does not speak this protocol") from None
  return head, data
