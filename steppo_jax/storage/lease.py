"""One process to a run folder."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

NAME = "lease.json"

_BEAT_S = 5.0
# Longer than a heartbeat is late on a shared file system.
_STALE_S = 30.0


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes out of a run folder while the context lasts.

  The operating system takes the lock back when the process ends, however it
  ends. For file systems that do not pass locks from machine to machine, the
  file is also touched every few seconds.

  Args:
    folder: The run folder; it must exist.

  Raises:
    RuntimeError: another process holds the folder, or it cannot be written.
  """
  path = pathlib.Path(folder) / NAME
  try:
    file = path.open("a+")
  except OSError as error:
    raise RuntimeError(
      f"cannot write in the run folder {folder}: {error.strerror}; choose "
      "another run_dir"
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise _taken(folder, _read(path)) from error
    owner = _read(path)
    elsewhere = owner.get("host") not in (None, socket.gethostname())
    if elsewhere and time.time() - path.stat().st_mtime < _STALE_S:
      raise _taken(folder, owner)
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    file.flush()
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beat.start()
    try:
      yield
    finally:
      ended.set()
      beat.join()
      file.truncate(0)


def _beat(path: pathlib.Path, ended: threading.Event) -> None:
  while not ended.wait(_BEAT_S):
    with contextlib.suppress(OSError):  # A disk that is full, for a while.
      os.utime(path)


def _read(path: pathlib.Path) -> dict:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _taken(folder, owner: dict) -> RuntimeError:
  who = ""
  if {"host", "pid"} <= set(owner):
    who = f" (process {owner['pid']} on {owner['host']})"
  return RuntimeError(
    f"another process{who} runs in {folder}: wait for it, stop it, or choose "
    "another run_dir"
  )
