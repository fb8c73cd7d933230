"""Files of weights that come over HTTP in pieces, and are whole or not there.

A file is named by its SHA-256. What has come stays when a connection breaks, so
that the sender goes on where it was. Nothing is read before all of it is there
and has the digest that it was announced with.
"""

import asyncio
import contextlib
import hashlib
import os
import pathlib
from collections.abc import AsyncIterator

from steppo_jax.serving import answers

# Bytes that are written at once.
_PIECE = 1 << 20


class Upload:
  """One file that is on its way.

  Attributes:
    sha256: Its digest, in hexadecimal digits.
    size: Its length in bytes.
    received: Bytes of it that are there.
    path: Where they are.
  """

  def __init__(self, sha256: str, size: int, path: pathlib.Path):
    self.sha256, self.size, self.path = sha256, size, path
    self.received = 0
    self._hash = hashlib.sha256()
    self._turn = 0
    self._lock = asyncio.Lock()
    path.write_bytes(b"")

  @property
  def whole(self) -> bool:
    """Whether all of it is there."""
    return self.received == self.size

  @property
  def right(self) -> bool:
    """Whether what is there has the digest."""
    return self._hash.hexdigest() == self.sha256

  async def append(self, offset: int, parts: AsyncIterator[bytes]) -> None:
    """Takes in what follows the first `offset` bytes.

    What has come when the parts break off stays. Who calls this takes over from
    an earlier sender, which writes no more.

    Raises:
      answers.Fault: another number of bytes is there, or it becomes too long.
      OSError: it cannot be written.
    """
    async with self._lock:  # An earlier sender may be writing.
      if offset != self.received:
        raise answers.Fault(
          409, f"{self.received} bytes are there, not {offset}: go on from "
          "there", "wrong_offset", "Upload-Offset",
        )  # fmt: skip
      self._turn += 1
      turn = self._turn
    waiting = bytearray()
    try:
      async for part in parts:
        waiting += part
        if offset + len(waiting) > self.size:
          waiting.clear()
          raise answers.Fault(
            400, f"more than the announced {self.size} bytes come",
            "invalid_request_error",
          )  # fmt: skip
        if len(waiting) >= _PIECE:
          offset += await self._write(turn, waiting)
    finally:
      await self._write(turn, waiting)

  async def _write(self, turn: int, waiting: bytearray) -> int:
    """Writes what waits, unless another sender has taken over."""
    async with self._lock:
      if turn != self._turn or not waiting:
        waiting.clear()
        return 0
      data = bytes(waiting)
      waiting.clear()
      await asyncio.to_thread(self._add, data)
      self.received += len(data)
      return len(data)

  def _add(self, data: bytes) -> None:
    with open(self.path, "r+b") as file:
      # Behind what counts: a write that failed may have left some bytes.
      file.seek(self.received)
      file.write(data)
    self._hash.update(data)


class Uploads:
  """The files that are on their way to a server.

  Attributes:
    largest: Most bytes of one.
  """

  def __init__(self, folder: str | os.PathLike, *, largest: int, most: int = 2):
    """None yet.

    Args:
      folder: Where they are kept.
      largest: Most bytes of one.
      most: Files at once; of more the oldest is given up.
    """
    self.largest = largest
    self._folder = pathlib.Path(folder)
    self._most = most
    self._all: dict[str, Upload] = {}

  def begin(self, sha256: str, size: int) -> Upload:
    """A file that is announced; one that is on its way goes on.

    Raises:
      answers.Fault: it is too long, or was announced with another length.
      OSError: it cannot be made.
    """
    if size > self.largest:
      raise answers.Fault(
        413, f"{size} bytes are more than weights of this model have "
        f"({self.largest})", "request_too_large", "bytes",
      )  # fmt: skip
    found = self._all.get(sha256)
    if found is None:
      for old in list(self._all)[: len(self._all) + 1 - self._most]:
        self.drop(old)
      found = self._all[sha256] = Upload(
        sha256, size, self._folder / f"{sha256}.safetensors"
      )
    elif found.size != size:
      raise answers.Fault(
        409, f"it was announced with {found.size} bytes, not {size}",
        "conflict", "bytes",
      )  # fmt: skip
    return found

  def get(self, sha256: str) -> Upload | None:
    """A file that is on its way."""
    return self._all.get(sha256)

  def drop(self, sha256: str) -> None:
    """Gives a file up."""
    found = self._all.pop(sha256, None)
    if found is not None:
      with contextlib.suppress(OSError):
        found.path.unlink()
