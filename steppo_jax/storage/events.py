"""Where the time of a run went: one JSON line for each thing that it did.

`events.jsonl` of a run folder holds, for every session (a process that worked
on the run),

    {"event": "start", "at": unix time, "t": seconds since the process began}
    {"t0": ..., "t1": ..., "update": 3, "seconds": {"rollout": 1.2, ...}}
    {"event": "waiting", "at": ..., "t": ..., "waits": [...]}
    {"event": "went_on", "at": ..., "t": ..., "who": ..., "waited": 75.2}
    {"event": "end", "t": ...}

of which "waiting" and "went_on" come from `processes.waits.Watch`.

A second belongs to one cause only: what an inner span takes is not counted for
the outer one. What no line accounts for was idle. This module imports no JAX.
"""

import contextlib
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from steppo_jax import files
from steppo_jax.processes import kill_points

FILE_NAME = "events.jsonl"

# What time is spent on, in the order in which it is shown.
SETUP = "setup"
ROLLOUT = "rollout"
ENVIRONMENT = "environment"
UPDATE = "update"
WEIGHTS = "weights"
EVALUATION = "evaluation"
CHECKPOINT = "checkpoint"
METRICS = "metrics"
COMPILE = "compile"
CAUSES = (
  ROLLOUT, ENVIRONMENT, UPDATE, WEIGHTS, EVALUATION, CHECKPOINT, METRICS,
  COMPILE, SETUP,
)  # fmt: skip


def process_age() -> float:
  """Seconds since this process began; 0 where the system does not tell."""
  try:
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2]
    began = int(fields.split()[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
  except (OSError, ValueError, IndexError, AttributeError):
    return 0.0


def _open(folder: str | os.PathLike):
  """The file, with whatever a kill left of a last line ended."""
  path = pathlib.Path(folder) / FILE_NAME
  try:
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    file = path.open("ab", buffering=0)
    if torn:
      file.write(b"\n")
  except OSError as error:
    raise RuntimeError(
      f"cannot write {path}: {error.strerror}; free space there or choose "
      "another run_dir"
    ) from error
  return file


def _rounded(value):
  if isinstance(value, dict):
    return {name: _rounded(item) for name, item in value.items()}
  if isinstance(value, list):
    return [_rounded(item) for item in value]
  return round(value, 6) if isinstance(value, float) else value


class _Span:
  """A span that is open: its cause, its start, and what is not its own."""

  def __init__(self, cause: str, start: float):
    self.cause = cause
    self.start = start
    # Intervals within that belong to other causes; none overlaps another.
    self.taken: list[tuple[float, float]] = []

  def take(self, start: float, end: float) -> float:
    """Gives an interval away; returns the seconds that were still its own."""
    start = max(start, self.start)
    inside = [i for i in self.taken if i[1] > start]
    self.taken = [i for i in self.taken if i[1] <= start]
    start = min([start, *(i[0] for i in inside)])
    self.taken.append((start, end))
    return end - start - sum(b - a for a, b in inside)


class Log:
  """The event log of one session; used by the thread that made it.

  Args:
    folder: The run folder; None writes nothing.
    age_s: How old the process is; so much is counted as setup.
    clock: Seconds, rising.

  Raises:
    RuntimeError: the file cannot be written.
  """

  def __init__(
    self,
    folder: str | os.PathLike | None,
    *,
    age_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._file = None if folder is None else _open(folder)
    self._clock = clock
    self._zero = clock() - age_s
    self._thread = threading.get_ident()
    self._open: list[_Span] = []
    self._seconds: dict[str, float] = {}
    self._write({"event": "start", "at": time.time(), "t": age_s})
    if age_s:
      self._write({"t0": 0.0, "t1": age_s, "seconds": {SETUP: age_s}})

  @contextlib.contextmanager
  def span(self, cause: str, update: int | None = None) -> Iterator[None]:
    """What happens inside is time of a cause; an outermost span is a line.

    Args:
      cause: One of `CAUSES`.
      update: The update that it is for, if it is for one.
    """
    span = _Span(cause, self._clock())
    self._open.append(span)
    try:
      yield
    finally:
      self._open.pop()
      end = self._clock()
      taken = sum(b - a for a, b in span.taken)
      self._add(cause, end - span.start - taken)
      if self._open:
        self._open[-1].take(span.start, end)
      else:
        line = {"t0": span.start - self._zero, "t1": end - self._zero}
        if update is not None:
          line["update"] = update
        self._write(line | {"seconds": self._seconds})
        self._seconds = {}

  def waiting(self) -> contextlib.AbstractContextManager[None]:
    """A span of waiting for environments."""
    return self.span(ENVIRONMENT)

  def ended(self, cause: str, seconds: float) -> None:
    """Says that the seconds up to now went to another cause.

    They are taken from the innermost span; seconds that were already taken
    from it are not counted twice. Nothing is counted in other threads, or
    where no span is open.
    """
    if threading.get_ident() != self._thread or not self._open:
      return
    now = self._clock()
    self._add(cause, self._open[-1].take(now - seconds, now))

  def note(self, event: str, **fields) -> None:
    """A line about something that happened; any thread may call it.

    Args:
      event: Its name.
      fields: What JSON can hold; none of them is called "seconds".
    """
    at = {"at": time.time(), "t": self._clock() - self._zero}
    self._write({"event": event} | at | fields)

  def _add(self, cause: str, seconds: float) -> None:
    self._seconds[cause] = self._seconds.get(cause, 0.0) + seconds

  def _write(self, line: dict) -> None:
    if self._file is None:
      return
    text = json.dumps(_rounded(line)).encode() + b"\n"
    files.write_all(self._file, text)
    kill_points.passed("events: a line")

  def close(self) -> None:
    self._write({"event": "end", "t": self._clock() - self._zero})
    if self._file is not None:
      self._file.close()

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *_) -> None:
    self.close()
