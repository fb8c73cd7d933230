"""The file of a pool: its tables, transactions, and the secret beside it.

This module imports no JAX.
"""

import contextlib
import os
import pathlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator

from steppo_jax.processes import waits

# Format of the file, in SQLite's own field for it.
_VERSION = 1
_BUSY_S = 60.0
_SECRET_BYTES = 32

Run = Callable[..., sqlite3.Cursor]

_SCHEMA = """
CREATE TABLE groups (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  task TEXT NOT NULL,
  task_uid TEXT NOT NULL,
  channel TEXT NOT NULL
);
CREATE INDEX group_tasks ON groups (task_uid);
CREATE TABLE episodes (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  uid TEXT NOT NULL UNIQUE,
  in_group INTEGER NOT NULL REFERENCES groups (number),
  key TEXT NOT NULL,
  seed INTEGER NOT NULL,
  state TEXT NOT NULL,
  owner TEXT NOT NULL DEFAULT '',
  until REAL,
  attempts INTEGER NOT NULL DEFAULT 0,
  cause TEXT,
  version INTEGER,
  success INTEGER,
  reward REAL,
  steps INTEGER,
  labels TEXT NOT NULL DEFAULT '{}',
  notes TEXT NOT NULL DEFAULT '',
  receipt TEXT,
  payload BLOB
);
CREATE INDEX episode_states ON episodes (state, in_group);
CREATE INDEX episode_groups ON episodes (in_group);
"""
# Newer than the first pools: a file without it gets it when it is opened.
_REQUESTS = """
CREATE TABLE IF NOT EXISTS requests (
  name TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  uid TEXT NOT NULL,
  attempt INTEGER NOT NULL
)
"""


class Full(RuntimeError):
  """So many episodes are under way that no more are taken in."""


class Lost(RuntimeError):
  """A lease has ended, and somebody else may have what it was for."""


class File:
  """One connection, which any thread may use."""

  def __init__(self, path: str | os.PathLike):
    """Opens the file, or makes it.

    Raises:
      ValueError: it is no pool of this version.
      RuntimeError: it cannot be read or written.
    """
    self.path = pathlib.Path(path)
    self._lock = threading.RLock()
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = sqlite3.connect(
        self.path, timeout=_BUSY_S, isolation_level=None,
        check_same_thread=False,
      )  # fmt: skip
    except (OSError, sqlite3.Error) as error:
      raise self._unusable(error) from error
    with self._told():
      # A commit is on the disk, whatever happens to processes and power.
      self._file.execute("PRAGMA journal_mode=WAL")
      self._file.execute("PRAGMA synchronous=FULL")
    with self.transaction() as run:
      (version,) = run("PRAGMA user_version").fetchone()
      (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
      if not version and not tables:
        for statement in _SCHEMA.split(";"):
          run(statement)
        run(f"PRAGMA user_version={_VERSION}")
      elif version != _VERSION:
        raise ValueError(
          f"{self.path} is not of version {_VERSION} of pools but of {version}"
        )
      run(_REQUESTS)

  def close(self) -> None:
    with self._lock:
      self._file.close()

  @contextlib.contextmanager
  def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
    """All that is run inside happens, or nothing of it."""
    with self._lock, self._told():
      with waits.on("pool", "another process", f"writes of {self.path}"):
        self._file.execute("BEGIN IMMEDIATE")
      try:
        yield lambda text, *values: self._file.execute(text, values)
        self._file.execute("COMMIT")
      except BaseException:
        with contextlib.suppress(sqlite3.Error):
          self._file.execute("ROLLBACK")
        raise

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    try:
      yield
    except sqlite3.Error as error:
      raise self._unusable(error) from error

  def _unusable(self, error: Exception) -> RuntimeError:
    return RuntimeError(
      f"the pool {self.path} cannot be read or written: {error}; free space "
      "there, or choose another file"
    )


def secret(path: str | os.PathLike) -> bytes:
  """The secret of a pool, from which those of its sessions derive.

  It lies beside the file, readable by its owner alone, so that sessions stay
  valid when a gateway is started anew.

  Raises:
    RuntimeError: it cannot be read or written, or is none.
  """
  file = pathlib.Path(f"{path}.secret")
  try:
    if not file.exists():
      _make_secret(file)
    found = file.read_bytes()
  except OSError as error:
    raise RuntimeError(
      f"cannot read or write the secret {file}: {error.strerror}"
    ) from error
  if len(found) != _SECRET_BYTES:
    raise RuntimeError(
      f"the secret {file} has {len(found)} bytes and not {_SECRET_BYTES}: "
      "remove it, and keys of sessions that are under way open none"
    )
  return found


def _make_secret(file: pathlib.Path) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  whole = file.with_name(f"{file.name}.{os.getpid()}")
  made = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
  with os.fdopen(made, "wb") as out:
    out.write(secrets.token_bytes(_SECRET_BYTES))
    out.flush()
    os.fsync(out.fileno())  # It is whole, or is not there.
  # The first process to link its file there has made the secret.
  with contextlib.suppress(FileExistsError):
    os.link(whole, file)
  whole.unlink()
