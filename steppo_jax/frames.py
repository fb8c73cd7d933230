"""Frames of the exchange between processes, on a socket."""

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")
_MOST = 1 << 36


def send(sock: socket.socket, head: dict[str, Any], data: bytes = b"") -> None:
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
