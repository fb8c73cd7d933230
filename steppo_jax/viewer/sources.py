"""Where the episodes of a run lie, whatever they were written by.

A run folder may hold journals, one file for each update and process, and
datasets under `data/` (`record_every`). A folder that is a dataset itself, such
as `evaluate --record` writes, is read as a run with nothing else in it, and so
is the file of a pool (`serve policy --pool`).
"""

import contextlib
import functools
import json
import pathlib
import re
import sqlite3
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from steppo_jax import types
from steppo_jax.rollout import codec, journal
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import labels

Kind = Literal["journal", "jsonl", "rows", "pool"]
_FACTS = "facts.json"
_UPDATE = re.compile(r"update(\d+)")


class Source(NamedTuple):
  """A file, or a folder, that holds episodes.

  Attributes:
    path: Where it is.
    name: Its path below the run folder.
    kind: "journal"; "jsonl", a table that is read line by line; "rows", a
      Parquet table or a TFDS dataset, read by numbers of rows; or "pool".
    update: That its episodes were played for, None where nobody says.
    split: Of their tasks.
  """

  path: pathlib.Path
  name: str
  kind: Kind
  update: int | None
  split: str

  @property
  def mark(self) -> str:
    """Changes when the contents may have changed."""
    stat = self._file.stat()
    size = stat.st_size
    wal = pathlib.Path(f"{self.path}-wal")
    if self.kind == "pool" and wal.is_file():
      size += wal.stat().st_size + wal.stat().st_mtime_ns
    return f"{stat.st_ino} {size} {stat.st_mtime_ns}"

  @property
  def identity(self) -> str:
    """Stays the same while a file only grows at its end."""
    stat = self._file.stat()
    if self.kind == "pool":
      return str(stat.st_ino)
    with open(self._file, "rb") as file:
      start = file.read(64 if self.kind == "jsonl" else 20)
    grows = self.kind in ("journal", "jsonl")
    size = "" if grows else f" {stat.st_size} {stat.st_mtime_ns}"
    return f"{stat.st_ino} {start.hex()}{size}"

  @property
  def size(self) -> int:
    """Bytes, for what is read by bytes; else the largest number there is."""
    grows = self.kind in ("journal", "jsonl")
    return self.path.stat().st_size if grows else 1 << 62

  @property
  def _file(self) -> pathlib.Path:
    return self.path / _FACTS if self.path.is_dir() else self.path


class Found(NamedTuple):
  """An episode and where it lies.

  Attributes:
    place: By which `load` finds it again in its source.
    end: Where the next one may begin.
    trajectory: The episode; None where there is only something to pass over.
    split: Of its task.
  """

  place: int
  end: int
  trajectory: types.Trajectory | None
  split: str


def is_run(path: pathlib.Path) -> bool:
  """Whether a path can be looked at."""
  if path.is_file():
    return path.suffix == ".sqlite"
  names = (run_folder.CONFIG_NAME, run_folder.JOURNALS_NAME, _FACTS)
  names += ("metrics.jsonl", run_folder.POOL_NAME)
  return any((path / name).exists() for name in names)


def find(run: pathlib.Path) -> list[Source]:
  """All sources of a run, in the order of their updates."""
  if run.is_file():
    return [Source(run, run.name, "pool", None, "train")]
  found = []
  journals = run / run_folder.JOURNALS_NAME
  for path in journals.iterdir() if journals.is_dir() else ():
    names = journal.identity(path)
    if names is not None:
      name = f"{run_folder.JOURNALS_NAME}/{path.name}"
      found.append((names, Source(path, name, "journal", names[0], "train")))
  ordered = [source for _, source in sorted(found, key=lambda one: one[0])]
  pool = run / run_folder.POOL_NAME
  if pool.is_file():
    ordered.append(Source(pool, pool.name, "pool", None, "train"))
  for folder in _datasets(run):
    ordered += _splits(run, folder)
  return ordered


def _datasets(run: pathlib.Path) -> list[pathlib.Path]:
  """Folders of datasets: their facts are written when all else is there."""
  if (run / _FACTS).is_file():
    return [run]
  # A table is a folder; a TFDS dataset lies under its builder and version.
  data = run / "data"
  paths = [*data.glob(f"*/{_FACTS}"), *data.glob(f"*/*/*/{_FACTS}")]
  return [path.parent for path in sorted(paths)]


def _splits(run: pathlib.Path, folder: pathlib.Path) -> list[Source]:
  try:
    facts = json.loads((folder / _FACTS).read_text())
    if facts.get("kind") != "trajectories":
      return []
    form, splits = facts.get("format"), list(facts["splits"])
  except (ValueError, KeyError, AttributeError, TypeError):
    return []
  named = _UPDATE.fullmatch(folder.name if form else folder.parent.name)
  update = int(named[1]) if named else None
  where = "" if folder == run else f"{folder.relative_to(run).as_posix()}/"
  found = []
  for split in splits:
    name = f"{where}{split}"
    if form == "jsonl":
      path = folder / f"{split}.jsonl"
      if path.is_file():
        found.append(Source(path, name, "jsonl", update, split))
    else:
      found.append(Source(folder, name, "rows", update, split))
  return found


def read(source: Source, start: int = 0) -> Iterator[Found]:
  """The episodes of a source from a place on.

  Args:
    source: Where to read.
    start: 0, or the `end` of an episode that was found before.

  Raises:
    ValueError: it holds something that cannot be read, and nothing behind it.
    RuntimeError: a package that reads it is missing.
    OSError: it is not there any more.
  """
  if source.kind == "journal":
    for one in journal.scan(source.path, start):
      yield Found(one.start, one.end, one.trajectory, source.split)
  elif source.kind == "jsonl":
    with open(source.path, "rb") as file:
      file.seek(start)
      while (line := file.readline()).endswith(b"\n"):
        end = start + len(line)
        yield Found(start, end, _of_line(source, line), source.split)
        start = end
  elif source.kind == "pool":
    yield from of_pool(source.path)
  else:
    rows = _rows(source.path, source.split, source.identity)
    for number in range(start, len(rows)):
      yield Found(number, number + 1, rows[number], source.split)


def load(source: Source, place: int) -> types.Trajectory:
  """One episode again.

  Raises:
    ValueError: it is not there any more, or cannot be read.
    RuntimeError: a package that reads it is missing.
    OSError: the source is not there any more.
  """
  if source.kind == "journal":
    return journal.load(source.path, place)
  if source.kind == "jsonl":
    with open(source.path, "rb") as file:
      file.seek(place)
      found = _of_line(source, file.readline())
  elif source.kind == "pool":
    found = one_of_pool(source.path, place)
  else:
    found = _rows(source.path, source.split, source.identity)[place]
  if not found:
    raise ValueError(f"{source.name} has no episode at {place} any more")
  return found


def _of_line(source: Source, line: bytes) -> types.Trajectory | None:
  from steppo_jax.datasets import tables

  if not line.strip():
    return None
  try:
    return tables.trajectory_of(json.loads(line))
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f"{source.name}: a line is damaged ({error})") from error


@functools.lru_cache(maxsize=4)
def _rows(folder: pathlib.Path, split: str, identity: str):
  del identity  # What is kept is of this one.
  # They take seconds to import, and most runs have journals alone.
  from steppo_jax.datasets import trajectories

  return trajectories.load(folder, split)


def one_of_pool(path: pathlib.Path, number: int) -> types.Trajectory | None:
  """One episode of a pool, None if its record is gone."""
  try:
    with contextlib.closing(_opened(path)) as file:
      return _payload(file, number)
  except sqlite3.Error as error:
    raise _no_pool(path, error) from error


def of_pool(path: pathlib.Path, known: Collection[int] = ()) -> Iterator[Found]:
  """The episodes of a pool whose records it still has; the file stays as it is.

  Args:
    path: The pool's file.
    known: Numbers whose trajectories are not wanted again.

  Raises:
    ValueError: the file cannot be read, or is no pool.
  """
  try:
    with contextlib.closing(_opened(path)) as file:
      rows = file.execute(
        "SELECT e.number, channel "
        "FROM episodes e JOIN groups g ON g.number = in_group "
        "WHERE payload IS NOT NULL ORDER BY e.number"
      ).fetchall()
      for number, channel in rows:
        one = None if number in known else _payload(file, number)
        yield Found(number, number, one, channel)
  except sqlite3.Error as error:
    raise _no_pool(path, error) from error


def labels_of_pool(
  path: pathlib.Path,
) -> dict[tuple[str, str], labels.Label]:
  """What was said of a pool's episodes, by channel and uid.

  Raises:
    ValueError: the file cannot be read, or is no pool.
  """
  try:
    with contextlib.closing(_opened(path)) as file:
      rows = file.execute(
        "SELECT channel, uid, cause, labels, notes "
        "FROM episodes e JOIN groups g ON g.number = in_group "
        "WHERE labels != '{}' OR notes != '' OR cause = 'excluded'"
      ).fetchall()
  except sqlite3.Error as error:
    raise _no_pool(path, error) from error
  found = {}
  for channel, uid, cause, named, notes in rows:
    named = json.loads(named)
    verdict = named.get("verdict", "")
    if cause == "excluded" or verdict not in labels.VERDICTS:
      verdict = "exclude" if cause == "excluded" else ""
    label = labels.Label(verdict, named.get("note", notes))
    if any(label):
      found[channel, uid] = label
  return found


def _opened(path: pathlib.Path) -> sqlite3.Connection:
  return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _no_pool(path: pathlib.Path, error: sqlite3.Error) -> ValueError:
  return ValueError(f"{path.name} is no pool that can be read: {error}")


def _payload(file: sqlite3.Connection, number: int) -> types.Trajectory | None:
  query = "SELECT payload FROM episodes WHERE number = ?"
  row = file.execute(query, (number,)).fetchone()
  return codec.from_bytes(row[0])[0] if row and row[0] else None
