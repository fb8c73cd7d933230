"""Finished trajectories on the disk, before anything is trained on them.

A journal holds the trajectories of one update that one process has played. It
is a row of frames (`rollout.codec`). The first says what the journal belongs
to, the last, once all episodes have ended, what else the rollout found. A frame
that was cut by a kill is cut off when the journal is opened again; whatever
follows a damaged frame goes with it, and those episodes are played again.

This module imports no JAX.
"""

import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from steppo_jax import files, types
from steppo_jax.processes import frames, kill_points
from steppo_jax.rollout import codec

_log = logging.getLogger(__name__)

_VERSION = 1
_STALE = ".stale"
_NAME = re.compile(r"(\d+)-(\d+)(?:-(\d+))?\.journal")


def path_of(
  folder: str | os.PathLike, update: int, process: int, round_: int = 0
) -> pathlib.Path:
  """The file of an update and a process in a folder of journals.

  Args:
    folder: Of journals.
    update: The update that the episodes are for.
    process: The one that plays them.
    round_: Further rounds of dynamic sampling have a file of their own.
  """
  name = f"{update}-{process}" + (f"-{round_}" if round_ else "")
  return pathlib.Path(folder) / f"{name}.journal"


class Contents(NamedTuple):
  """What a journal holds.

  Attributes:
    belongs: What was given when it was made.
    trajectories: By uid, in the order in which they ended.
    end: What `Journal.finish` was given, None while episodes are missing.
  """

  belongs: Mapping[str, Any]
  trajectories: dict[str, types.Trajectory]
  end: Mapping[str, Any] | None


def read(path: str | os.PathLike) -> Contents:
  """What a journal holds, for viewing; the file stays as it is.

  Raises:
    ValueError: the file is no journal.
    OSError: the file cannot be read.
  """
  return _contents(pathlib.Path(path))[0]


class Place(NamedTuple):
  """Where a trajectory lies in a journal.

  Attributes:
    start: First byte of its frame.
    end: One past the last byte.
    trajectory: What lies there; None for the frames that begin and end a
      journal, which hold none.
  """

  start: int
  end: int
  trajectory: types.Trajectory | None


def scan(path: str | os.PathLike, start: int = 0) -> Iterator[Place]:
  """The frames of a journal one by one, for readers that go on later.

  It ends where no whole frame follows: at the end, at a frame that is still
  being written, or at damage.

  Args:
    path: The file.
    start: 0, or the `end` of a place that was given before.

  Raises:
    ValueError: the file is no journal, or a frame in it is of another format.
    OSError: the file cannot be read.
  """
  with open(path, "rb") as file:
    while (found := codec.read_frame(file, start)) is not None:
      payload, end = found
      head, data = frames.unpack(payload)
      if not start and head.get("version") != _VERSION:
        raise ValueError(f"{path} is not of version {_VERSION} of journals")
      trajectory = None
      if start and "end" not in head:
        try:
          trajectory = codec.decode(head, data)
        except (KeyError, TypeError, ValueError) as error:
          raise ValueError(
            f"{path}: the frame at byte {start} is of another format "
            f"({error!r})"
          ) from error
      yield Place(start, end, trajectory)
      start = end


def load(path: str | os.PathLike, start: int) -> types.Trajectory:
  """The trajectory at a place that `scan` gave.

  Raises:
    ValueError: there is none: the file has changed since.
    OSError: the file cannot be read.
  """
  place = next(scan(path, start), None) if start else None
  if place is None or place.trajectory is None:
    raise ValueError(f"{path} has no trajectory at byte {start} any more")
  return place.trajectory


def identity(path: str | os.PathLike) -> tuple[int, int, int] | None:
  """Update, process and round that a journal's name tells; None for others."""
  name = _NAME.fullmatch(pathlib.Path(path).name)
  return name and (int(name[1]), int(name[2]), int(name[3] or 0))


class Journal:
  """Appends to the journal of an update, which may hold something already.

  Attributes:
    trajectories: What is in it, by uid.
    end: What `finish` was given, None while episodes are missing.
  """

  def __init__(self, path: str | os.PathLike, belongs: Mapping[str, Any]):
    """Opens a journal, or makes it.

    Args:
      path: The file; its folder is made.
      belongs: JSON-able facts that make the trajectories what they are, such
        as update, seed and policy. A journal that belongs to something else is
        set aside under another name.

    Raises:
      RuntimeError: the file cannot be read or written.
    """
    self._path = pathlib.Path(path)
    self.trajectories: dict[str, types.Trajectory] = {}
    self.end: Mapping[str, Any] | None = None
    belongs = json.loads(json.dumps(dict(belongs)))
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if self._path.exists():
        self._take_up(belongs)
      self._file = self._path.open("ab", buffering=0)
      if not self._file.tell():
        try:
          self._write({"version": _VERSION, "belongs": belongs})
        except BaseException:
          self.close()
          raise
    except OSError as error:
      raise self._unwritten(error) from error

  def _take_up(self, belongs: Mapping[str, Any]) -> None:
    try:
      found, whole = _contents(self._path)
    except ValueError:
      found, whole = None, 0
    if found is not None and found.belongs == belongs:
      size = self._path.stat().st_size
      if whole < size:
        _log.warning(
          "%s: cut off %d bytes of a frame that was not finished or is damaged",
          *(self._path, size - whole),
        )
        os.truncate(self._path, whole)
      self.trajectories, self.end = found.trajectories, found.end
      return
    if not self._path.stat().st_size:
      return
    aside = self._path.with_name(self._path.name + _STALE)
    os.replace(self._path, aside)
    _log.warning(
      "%s was of another policy or could not be read; it is now %s",
      *(self._path, aside),
    )

  def append(self, trajectory: types.Trajectory) -> None:
    """Writes a trajectory that has ended, unless it is there already.

    When this returns the system has it, so that no end of the process loses it;
    `finish` makes sure of the disk.

    Raises:
      RuntimeError: it cannot be written.
    """
    if trajectory.uid in self.trajectories:
      return
    try:
      self._write(*codec.encode(trajectory))
    except OSError as error:
      raise self._unwritten(error) from error
    self.trajectories[trajectory.uid] = trajectory

  def finish(self, facts: Mapping[str, Any]) -> None:
    """Says that all episodes have ended; returns when it is on the disk.

    Args:
      facts: JSON-able, what else the rollout found.

    Raises:
      RuntimeError: it cannot be written.
    """
    try:
      self._write({"end": facts})
      os.fsync(self._file.fileno())
    except OSError as error:
      raise self._unwritten(error) from error
    self.end = facts

  def _write(self, head: Mapping[str, Any], data: bytes = b"") -> None:
    frame = codec.frame(frames.pack(head, data))
    half = len(frame) // 2
    files.write_all(self._file, frame[:half])
    kill_points.passed("journal: half a frame")
    files.write_all(self._file, frame[half:])
    kill_points.passed("journal: a frame")

  def _unwritten(self, error: OSError) -> RuntimeError:
    return RuntimeError(
      f"cannot write the journal {self._path}: {error.strerror}; free space "
      "there or choose another run_dir"
    )

  def close(self) -> None:
    self._file.close()

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def prune(folder: str | os.PathLike, *, needed_from: int, keep: int) -> None:
  """Removes journals that neither a restart nor a viewer needs.

  Args:
    folder: Of journals; may be missing.
    needed_from: First update that a restart may play again.
    keep: Updates before that one whose journals stay for viewing.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    name = _NAME.fullmatch(path.name.removesuffix(_STALE))
    if name and int(name[1]) < needed_from - keep:
      path.unlink()


def _contents(path: pathlib.Path) -> tuple[Contents, int]:
  """What is whole of a journal, and its length in bytes."""
  belongs, trajectories, end, whole = None, {}, None, 0
  for payload, place in codec.frames(path.read_bytes()):
    head, data = frames.unpack(payload)
    if belongs is None:
      if head.get("version") != _VERSION:
        raise ValueError(f"{path} is not of version {_VERSION} of journals")
      belongs = head["belongs"]
    elif "end" in head:
      end = head["end"]
    else:
      trajectories.setdefault(head["uid"], codec.decode(head, data))
    whole = place
  if belongs is None:
    raise ValueError(f"{path} is no journal")
  return Contents(belongs, trajectories, end), whole


def same(a: types.Trajectory, b: types.Trajectory) -> bool:
  """Whether two trajectories are equal to the last bit."""
  return codec.encode(a) == codec.encode(b)
