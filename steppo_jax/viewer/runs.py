"""A run as it is looked at: its index, numbers, times and options."""

import json
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from steppo_jax import types
from steppo_jax.reports import goodput, intervals
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries
from steppo_jax.storage import events, labels, lease, metrics
from steppo_jax.storage import folder as run_folder
from steppo_jax.viewer import credit, index, sources, tokens

# A run whose files changed so recently is taken to be under way; its process
# touches the lease every few seconds.
_LIVE_S = 30.0
# Seconds between two looks at the sources of a run, and how many times longer
# than a look the pause before the next one is: the run comes first.
_LOOK_S = 1.0, 30.0
_REST = 50.0
# Numbers beyond this are nobody's metrics, and overflow in sums.
_MOST = 1e300
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SEED = re.compile(r"[-_]?seed[-_]?\d+$")

LoadTokenizer = Callable[[dict[str, Any]], types.Tokenizer]


class Run:
  """One run folder, dataset or pool.

  Attributes:
    number: Its place among the runs that are shown.
    path: Where it is.
    label: Names it among the others.
    index: Its episodes.
    pieces: Makes text of its token ids.
    without_text: Why there is no text, "" where there is.
    credit: What computes advantages and ratios; see `viewer.credit`.
  """

  def __init__(
    self,
    number: int,
    path: pathlib.Path,
    *,
    cache: pathlib.Path,
    load_tokenizer: LoadTokenizer,
    credit_command: Sequence[str] = credit.COMMAND,
  ):
    """Opens a run.

    Args:
      number: See `Run`.
      path: See `Run`.
      cache: Folder of indices.
      load_tokenizer: Gives the tokenizer for the options of a run, or the facts
        of a dataset; raises ValueError or RuntimeError where it cannot.
      credit_command: See `viewer.credit.Jobs`.

    Raises:
      ValueError: there is nothing to look at.
      RuntimeError: the index cannot be written.
    """
    if not path.exists():
      raise ValueError(f"there is no {path}: give the folder of a run")
    if not sources.is_run(path):
      raise ValueError(
        f"{path} is no run: it holds neither config.json nor metrics.jsonl nor "
        "episodes; give a folder that `train` made, a dataset of trajectories, "
        "or a pool"
      )
    self.number, self.path = number, path
    self.label = path.resolve().name
    if _VERSION.fullmatch(self.label):  # TFDS puts it below the name.
      self.label = path.resolve().parent.name
    self.without_text = ""
    tokenizer = None
    try:
      tokenizer = load_tokenizer(self.options() or self._facts_of_dataset())
    except (ValueError, RuntimeError, OSError) as error:
      self.without_text = f"token ids cannot be shown as text: {error}"
    self.pieces = tokens.Pieces(tokenizer)
    digest = "" if tokenizer is None else tokenizer.digest
    self.index = index.Index(path, cache, self.pieces, digest)
    self.credit = credit.Jobs(path, credit_command)
    self._lines: list[dict[str, Any]] = []
    self._read: tuple[int, int] = (0, 0)
    self._damaged = 0
    self._lock = threading.Lock()
    self._next = 0.0
    self._stopped = threading.Event()
    self._looking: threading.Thread | None = None

  def close(self) -> None:
    """Ends what goes on beside."""
    self._stopped.set()
    if self._looking is not None:
      self._looking.join()
    self.credit.close()
    self.index.close()

  def look(self) -> None:
    """Begins to bring the index up to date, if that was not done just now."""
    with self._lock:
      busy = self._looking is not None and self._looking.is_alive()
      if busy or time.monotonic() < self._next:
        return
      self._looking = threading.Thread(target=self._look, daemon=True)
      self._looking.start()

  def _look(self) -> None:
    self.index.refresh(self._stopped.is_set)
    least, most = _LOOK_S
    pause = min(most, max(least, _REST * time.thread_time()))
    self._next = time.monotonic() + pause

  def options(self) -> dict[str, Any]:
    """Options of the run; empty where there are none."""
    return self._json(run_folder.CONFIG_NAME)

  def facts(self) -> dict[str, Any]:
    """What ran, where and when; empty where nobody says."""
    return self._json(run_folder.FACTS_NAME)

  def _facts_of_dataset(self) -> dict[str, Any]:
    return {"digest": self._json("facts.json").get("tokenizer")}

  def _json(self, name: str) -> dict[str, Any]:
    try:
      found = json.loads((self.path / name).read_text())
    except (OSError, ValueError):
      return {}
    return found if isinstance(found, dict) else {}

  def state(self) -> dict[str, Any]:
    """What changes while a run goes on, small enough to be asked for often."""
    progress = self.index.progress
    found = [
      path.stat()
      for name in (metrics.FILE_NAME, events.FILE_NAME, lease.NAME)
      if (path := self.path / name).is_file()
    ]
    newest = max((s.st_mtime for s in found), default=0.0)
    return {
      "number": self.number,
      "files": [s.st_size for s in found],
      "episodes": progress.episodes,
      "indexed": [progress.sources, progress.of],
      "busy": progress.busy,
      "faults": progress.faults | self._damage(),
      "generation": self.index.generation,
      "live": time.time() - newest < _LIVE_S,
      "credit": self.credit.state(),
    }

  def about(self) -> dict[str, Any]:
    """What stays the same: names, options, what ran."""
    return {
      "number": self.number,
      "label": self.label,
      "group": _SEED.sub("", self.label) or self.label,
      "options": self.options(),
      "facts": self.facts(),
      "without_text": self.without_text,
    }

  def _damage(self) -> dict[str, str]:
    if not self._damaged:
      return {}
    return {metrics.FILE_NAME: f"{self._damaged} lines cannot be read"}

  def lines(self) -> list[dict[str, Any]]:
    """The lines of the metrics, without those that cannot be read."""
    with self._lock:
      try:
        with open(self.path / metrics.FILE_NAME, "rb") as file:
          inode = os.fstat(file.fileno()).st_ino
          before, place = self._read
          if inode != before or file.seek(0, 2) < place:
            self._lines, self._damaged, place = [], 0, 0
          file.seek(place)
          while (line := file.readline()).endswith(b"\n"):
            place += len(line)
            self._add(line)
          self._read = inode, place
      except OSError:
        self._lines, self._read = [], (0, 0)
      return list(self._lines)

  def _add(self, line: bytes) -> None:
    try:
      found = json.loads(line)
      if abs(int(found["update"])) > _MOST:
        raise ValueError
      self._lines.append(found | {"update": int(found["update"])})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
      self._damaged += 1

  def times(self) -> dict[str, Any] | None:
    """Where the time went; None without an event log that can be read."""
    try:
      found = goodput.read(self.path)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
      return None
    if found is None:
      return None
    updates = sorted(found.by_update)
    return {
      "causes": [c for c in events.CAUSES if found.seconds.get(c)],
      "seconds": found.seconds | {"idle": max(0.0, found.idle_s)},
      "wall": found.wall_s,
      "down": found.down_s,
      "sessions": found.sessions,
      "updates": updates,
      "by_update": [found.by_update[update] for update in updates],
    }

  def set_label(self, uid: str, split: str, label: labels.Label) -> str:
    """Keeps what was said of an episode: in the pool, or in a file beside.

    Returns:
      What has to be known about it, "" for nothing.

    Raises:
      RuntimeError: it cannot be written.
    """
    pool = (
      self.path if self.path.is_file() else self.path / (run_folder.POOL_NAME)
    )
    if pool.is_file():
      with pool_lib.Pool(pool) as opened:
        if pool_entries.has(opened, uid):
          pool_entries.label(opened, [uid], label._asdict())
          if label.verdict == "exclude":
            try:
              pool_entries.exclude(opened, [uid])
            except ValueError as error:
              return f"{error}: it is left out of exports alone"
          return ""
    labels.add(self.path, uid, label, split=split)
    return ""


def names(runs: Sequence[Run]) -> list[str]:
  """Names of all numbers that runs have written."""
  found: dict[str, None] = {}
  for run in runs:
    for line in run.lines():
      for name, value in line.items():
        if isinstance(value, int | float) and name != "update":
          found[name] = None
  return sorted(found)


def curves(
  runs: Sequence[Run], name: str, x: str, *, apart: bool
) -> list[dict[str, Any]]:
  """The curves of one number, one for all runs that differ in their seed alone.

  Args:
    runs: Those that are shown.
    name: Of the number.
    x: "update", "minutes" or "episodes" (played so far).
    apart: Whether every run has a curve of its own.

  Returns:
    Per curve `label`, `runs`, and the points `x`, `y`, `low` and `high`: the
    mean over the runs and its 95 % bootstrap interval, which is None for one
    run, or Wilson's for success of one run.
  """
  grouped: dict[str, list[Run]] = {}
  for run in runs:
    key = str(run.number) if apart else _SEED.sub("", run.label) or run.label
    grouped.setdefault(key, []).append(run)
  found = []
  for members in grouped.values():
    points = [_points(run, name, x) for run in members]
    updates = sorted(set().union(*points))
    made = [
      _point([p[update] for p in points if update in p]) for update in updates
    ]
    if made:
      label = members[0].label
      if len(members) > 1:
        label = f"{_SEED.sub('', label)} ({len(members)} seeds)"
      found.append({
        "label": label,
        "runs": [run.number for run in members],
        "updates": updates,
        **{key: [p[key] for p in made] for key in ("x", "y", "low", "high")},
      })  # fmt: skip
  return found


def _points(run: Run, name: str, x: str) -> dict[int, tuple]:
  found, played = {}, 0.0
  for line in run.lines():
    played += _number(line, "rollout/episodes") or 0.0
    value = _number(line, name)
    at = {"episodes": played, "minutes": _number(line, "minutes")}.get(
      x, line["update"]
    )
    if at is not None and value is not None:
      count = None
      if name == "eval/success" and 0 <= value <= 1:
        count = _number(line, "eval/episodes")
      found[line["update"]] = (at, value, count)
  return found


def _number(line: dict[str, Any], name: str) -> float | None:
  """A number of a line; None where it is missing, or none that is finite."""
  value = line.get(name)
  known = isinstance(value, int | float) and abs(value) < _MOST
  return float(value) if known else None


def _point(values: list[tuple]) -> dict[str, float | None]:
  low = high = None
  ys = [y for _, y, _ in values]
  if len(values) > 1:
    low, high = _interval(tuple(ys))
  elif (values[0][2] or 0) >= 1:
    n = round(values[0][2])
    low, high = intervals.wilson_interval(round(ys[0] * n), n)
  mean = lambda numbers: sum(numbers) / len(numbers)
  xs = [x for x, _, _ in values]
  return {"x": mean(xs), "y": mean(ys), "low": low, "high": high}


_known: dict[tuple[float, ...], tuple[float, float]] = {}


def _interval(values: tuple[float, ...]) -> tuple[float, float]:
  """Kept, as a page that follows a run asks for the same again and again."""
  if values not in _known:
    if len(_known) > 100_000:
      _known.clear()
    _known[values] = intervals.bootstrap_interval(values, seed=0)
  return _known[values]
