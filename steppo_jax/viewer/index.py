"""A table of all episodes of a run, so that pages of it need no reading.

The index is one SQLite file in a cache folder. It is made of the sources of the
run (`viewer.sources`), brought up to date by what was added at their ends, and
made anew where a source is another one than before.
"""

import contextlib
import fcntl
import hashlib
import pathlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from steppo_jax import types
from steppo_jax.storage import labels as labels_lib
from steppo_jax.viewer import sources
from steppo_jax.viewer import tokens as tokens_lib

# Changes with the tables; files of other versions are made anew.
_VERSION = 1
_BUSY_S = 30.0
# Episodes after which what was found is kept and shown.
_BATCH = 500
# Rows of the text search that nothing refers to any more, at most.
_MOST_LOST = 20_000

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE files (
  id INTEGER PRIMARY KEY, name TEXT UNIQUE, identity TEXT, mark TEXT,
  done INTEGER, fault TEXT
);
CREATE TABLE episodes (
  id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER, place INTEGER,
  hidden INTEGER, uid TEXT, at INTEGER, split TEXT, task TEXT, env TEXT,
  family TEXT, success INTEGER, cause TEXT, steps INTEGER, tokens INTEGER,
  sampled INTEGER, version INTEGER, reward REAL
);
CREATE INDEX episode_files ON episodes (file);
CREATE INDEX episode_uids ON episodes (uid, split);
CREATE INDEX episode_tasks ON episodes (task, at);
CREATE TABLE labels (
  split TEXT, uid TEXT, verdict TEXT, note TEXT, PRIMARY KEY (split, uid)
);
CREATE VIRTUAL TABLE words USING fts5 (text, content='');
"""


class Progress(NamedTuple):
  """How far the index is.

  Attributes:
    episodes: Listed so far.
    sources: Read to their ends.
    of: All sources there are.
    busy: Whether it is being brought up to date.
    faults: What could not be read, by source.
  """

  episodes: int
  sources: int
  of: int
  busy: bool
  faults: dict[str, str]


class Index:
  """The index of one run; any thread may use it.

  Attributes:
    run: The run's folder, or the file of a pool.
  """

  def __init__(
    self,
    run: pathlib.Path,
    cache: pathlib.Path,
    pieces: tokens_lib.Pieces,
    digest: str,
  ):
    """Opens the index, or makes an empty one.

    Args:
      run: See `Index`.
      cache: Folder of indices; it is made.
      pieces: Makes text of the run's token ids.
      digest: Of the tokenizer; another one is another index.

    Raises:
      RuntimeError: the cache folder cannot be written.
    """
    self.run, self._pieces = run, pieces
    self._refreshing = threading.Lock()
    self._reading = threading.Lock()
    whole = f"{run.resolve()}\0{digest}\0{_VERSION}"
    name = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
    self._path = cache / f"{name}.sqlite"
    try:
      cache.mkdir(parents=True, exist_ok=True, mode=0o700)
      self._read = self._open()
    except (OSError, sqlite3.Error) as error:
      raise RuntimeError(
        f"cannot write the index {self._path}: {error}; name another folder "
        "with --cache"
      ) from error
    (count,) = self.query("SELECT count(*) FROM episodes WHERE NOT hidden")[0]
    self._progress = Progress(count, 0, 0, False, {})
    self._lost = 0
    self._sources: dict[str, sources.Source] = {}

  def _open(self) -> sqlite3.Connection:
    """A connection, to a file that is made anew where it is none."""
    for attempt in range(2):
      file = sqlite3.connect(
        self._path, timeout=_BUSY_S, isolation_level=None,
        check_same_thread=False,
      )  # fmt: skip
      try:
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA synchronous=NORMAL")
        file.execute("BEGIN IMMEDIATE")
        (tables,) = file.execute(
          "SELECT count(*) FROM sqlite_master WHERE name = 'episodes'"
        ).fetchone()
        if not tables:
          for statement in _SCHEMA.split(";"):
            file.execute(statement)
        file.execute("COMMIT")
        return file
      except sqlite3.DatabaseError as error:
        file.close()
        if attempt or isinstance(error, sqlite3.OperationalError):
          raise
        self._remove()
    raise AssertionError("unreachable")

  def _remove(self) -> None:
    for ending in ("", "-wal", "-shm"):
      pathlib.Path(f"{self._path}{ending}").unlink(missing_ok=True)

  def close(self) -> None:
    with self._refreshing, self._reading:
      self._read.close()

  def query(self, text: str, *values: Any) -> list[tuple]:
    """The rows of a query."""
    with self._reading:
      return self._read.execute(text, values).fetchall()

  @property
  def progress(self) -> Progress:
    """How far it is."""
    return self._progress

  def source(self, name: str) -> sources.Source | None:
    """A source by its name; None where it is not known any more."""
    if name not in self._sources:
      self._sources = {one.name: one for one in sources.find(self.run)}
    return self._sources.get(name)

  @property
  def generation(self) -> int:
    """Another number whenever something has changed."""
    return self.query("PRAGMA data_version")[0][0]

  def refresh(self, stopped: Callable[[], bool] = lambda: False) -> None:
    """Brings the index up to date, unless that is being done.

    What cannot be read is told by `progress` and left out.

    Args:
      stopped: Asked between episodes; ends the work early.
    """
    if not self._refreshing.acquire(blocking=False):
      return
    try:
      with (
        open(f"{self._path}.lock", "w") as lock,
        contextlib.closing(self._open()) as file,
      ):
        # Another viewer of the same run does the work, and both read it.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._refresh(file, stopped)
    except BlockingIOError:
      pass
    except (OSError, sqlite3.Error) as error:
      faults = {"": f"the index cannot be brought up to date: {error}"}
      self._progress = self._progress._replace(faults=faults)
    finally:
      (count,) = self.query("SELECT count(*) FROM episodes WHERE NOT hidden")[0]
      self._progress = self._progress._replace(busy=False, episodes=count)
      self._refreshing.release()

  def _refresh(self, file, stopped) -> None:
    found = sources.find(self.run)
    self._sources = {source.name: source for source in found}
    known = {
      name: rest
      for name, *rest in file.execute(
        "SELECT name, id, identity, mark, done, fault FROM files"
      )
    }
    gone = known.keys() - {source.name for source in found}
    for number in sorted(known[name][0] for name in gone):
      self._drop(file, number)
    faults: dict[str, str] = {}
    changed = []
    for source in found:
      before = known.get(source.name)
      mark = _mark(source)
      if before is None or before[2] != mark:
        changed.append((source, mark, before))
      elif before[4]:
        faults[source.name] = before[4]
    read = len(found) - len(changed)
    for source, mark, before in changed:
      self._progress = self._progress._replace(
        sources=read, of=len(found), busy=True, faults=dict(faults)
      )
      fault = self._take(file, source, mark, before, stopped)
      if fault:
        faults[source.name] = fault
      if stopped():
        return
      read += 1
    self._take_labels(file, found, faults)
    self._progress = self._progress._replace(
      sources=read, of=len(found), faults=faults
    )
    self._shrink(file)

  def _take(self, file, source, mark, known, stopped) -> str | None:
    """Reads what is new of a source; returns what is wrong with it."""
    try:
      number, start = self._begin(file, source, known)
      reader = self._pool if source.kind == "pool" else self._lines
      fault = reader(file, number, source, start, stopped)
    except FileNotFoundError:
      return None  # It has gone since it was listed.
    except OSError as error:
      return f"{error.strerror}: {error.filename}"
    if not stopped():
      with _writing(file):
        file.execute(
          "UPDATE files SET mark = ?, fault = ? WHERE id = ?",
          (mark, fault, number),
        )
    return fault

  def _begin(self, file, source, known) -> tuple[int, int]:
    """The number of a source and where to go on reading."""
    identity = source.identity
    if known is not None:
      number, before, _, done, _ = known
      if before == identity and done <= source.size:
        return number, done
      self._drop(file, number)
    with _writing(file):
      added = file.execute(
        "INSERT INTO files (name, identity, mark, done) VALUES (?, ?, '', 0)",
        (source.name, identity),
      )
    return added.lastrowid, 0

  def _lines(self, file, number, source, start, stopped) -> str | None:
    """Reads a source that grows at its end, or does not grow."""
    reader = sources.read(source, start)
    end = start
    while True:
      batch, fault = [], None
      try:
        for one in reader:
          batch.append(one)
          if len(batch) == _BATCH or stopped():
            break
      except (ValueError, RuntimeError) as error:
        fault = str(error)  # What came before the damage is kept.
      if batch:
        self._insert(file, number, source, batch)
        end = batch[-1].end
      if fault is None and len(batch) == _BATCH and not stopped():
        continue
      if fault is None and end < source.size < 1 << 62 and not stopped():
        return (
          f"the last {source.size - end} bytes are no whole episode: it is "
          "still being written, or damaged"
        )
      return fault

  def _pool(self, file, number, source, start, stopped) -> str | None:
    """Reads the episodes of a pool, which come and go in any order."""
    query = "SELECT place FROM episodes WHERE file = ?"
    known = {place for (place,) in file.execute(query, (number,))}
    there, batch = set(), []
    try:
      for one in sources.of_pool(source.path, known):
        there.add(one.place)
        if one.trajectory is not None:
          batch.append(one)
    except ValueError as error:
      return str(error)
    with _writing(file):
      for place in sorted(known - there):
        self._delete(file, "file = ? AND place = ?", number, place)
    self._insert(file, number, source, batch)
    return None

  def _insert(self, file, number, source, batch) -> None:
    rows = [
      (one, _row(one.trajectory, source.update), self._text(one.trajectory))
      for one in batch
      if one.trajectory is not None
    ]
    with _writing(file):
      for one, row, text in rows:
        taken = file.execute(
          "SELECT 1 FROM episodes WHERE uid = ? AND split = ? AND NOT hidden",
          (row[0], clean(one.split)),
        ).fetchone()
        added = file.execute(
          "INSERT INTO episodes (file, place, hidden, split, uid, at, task, "
          "env, family, success, cause, steps, tokens, sampled, version, "
          f"reward) VALUES ({', '.join('?' * 16)})",
          (number, one.place, taken is not None, clean(one.split), *row),
        )
        file.execute(
          "INSERT INTO words (rowid, text) VALUES (?, ?)",
          (added.lastrowid, text),
        )
      if batch:
        file.execute(
          "UPDATE files SET done = ? WHERE id = ?", (batch[-1].end, number)
        )
    if rows:
      count = self._progress.episodes + len(rows)
      self._progress = self._progress._replace(episodes=count)

  def _text(self, trajectory: types.Trajectory) -> str:
    """What is searched: everything that was read and written, once."""
    task = trajectory.task
    parts, before = [], None
    for step in trajectory.steps:
      new = step.prompt_ids
      if before is not None:
        shared = types.common_prefix(new, before.prompt_ids)
        if shared == len(before.prompt_ids):
          rest = new[shared:]
          shared += types.common_prefix(rest, before.response_ids)
        new = new[shared:]
      parts += [new, step.response_ids]
      before = step
    if trajectory.final_prompt_ids is not None and before is not None:
      size = len(before.prompt_ids) + len(before.response_ids)
      parts.append(trajectory.final_prompt_ids[size:])
    said = self._pieces.joined(parts)
    return clean("\n".join([task.uid, trajectory.error or "", said]))

  def _drop(self, file, number: int) -> None:
    """Forgets a source."""
    with _writing(file):
      self._delete(file, "file = ?", number)
      file.execute("DELETE FROM files WHERE id = ?", (number,))

  def _delete(self, file, where: str, *values: Any) -> None:
    """Forgets episodes; those that they hid come forth again."""
    uids = file.execute(
      f"DELETE FROM episodes WHERE {where} RETURNING uid, split, hidden", values
    ).fetchall()
    for uid, split, hidden in uids:
      if not hidden:
        file.execute(
          "UPDATE episodes SET hidden = 0 WHERE id = (SELECT min(id) FROM "
          "episodes WHERE uid = ? AND split = ?)",
          (uid, split),
        )
    self._lost += len(uids)

  def _take_labels(self, file, found, faults: dict[str, str]) -> None:
    told: dict[tuple[str, str], labels_lib.Label] = {}
    try:
      if self.run.is_dir():
        told |= labels_lib.read(self.run)
      for source in found:
        if source.kind == "pool":
          told |= sources.labels_of_pool(source.path)
    except (ValueError, OSError) as error:
      faults[labels_lib.FILE_NAME] = str(error)
      return
    told = {key: label for key, label in told.items() if any(label)}
    query = "SELECT split, uid, verdict, note FROM labels"
    before = {(a, b): (c, d) for a, b, c, d in file.execute(query)}
    if before != told:
      with _writing(file):
        file.execute("DELETE FROM labels")
        file.executemany(
          "INSERT INTO labels VALUES (?, ?, ?, ?)",
          [tuple(map(clean, (*key, *label))) for key, label in told.items()],
        )

  def _shrink(self, file) -> None:
    """Begins anew when most that can be searched is of episodes long gone."""
    if self._lost < _MOST_LOST:
      return
    with _writing(file):
      for table in ("files", "episodes"):
        file.execute(f"DELETE FROM {table}")
      file.execute("INSERT INTO words (words) VALUES ('delete-all')")
    self._lost = 0


def _mark(source: sources.Source) -> str:
  try:
    return source.mark
  except OSError:
    return ""  # It has gone since it was listed.


def clean(text: str) -> str:
  """Text that can be stored: half a surrogate pair has no UTF-8."""
  return text.encode("utf-8", "replace").decode()


@contextlib.contextmanager
def _writing(file: sqlite3.Connection) -> Iterator[None]:
  file.execute("BEGIN IMMEDIATE")
  try:
    yield
    file.execute("COMMIT")
  except BaseException:
    file.execute("ROLLBACK")
    raise


def _row(trajectory: types.Trajectory, update: int | None) -> tuple:
  """What the table says of an episode, in the order of its columns."""
  task, steps = trajectory.task, trajectory.steps
  cause = None
  if trajectory.error is not None:
    cause = clean(trajectory.error.partition(":")[0].strip()[:80] or "unknown")
  return (
    clean(trajectory.uid), update, clean(task.uid), clean(task.env),
    clean(task.family), int(trajectory.success), cause, len(steps),
    max((len(s.prompt_ids) + len(s.response_ids) for s in steps), default=0),
    sum(len(s.response_ids) for s in steps),
    max((s.policy_version for s in steps), default=None),
    trajectory.total_reward,
  )  # fmt: skip
