"""Who waits for whom in this process, since when, and who has waited too long.

Learner, rollouts, environments, samplers, agents and files wait for each other.
Where one of them stops, so do the others after a while, and none of them knows
why. Each therefore says what it waits for,

    with waits.on("learner", "rollouts", "episodes of update 7"):
      ...

which costs microseconds, and a `Watch` tells of the whole chain once a wait
has lasted longer than a limit. Where parties wait for each other in a circle,
which no patience ends, it names the circle.

This module imports no JAX.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_log = logging.getLogger(__name__)

# Names of parties that more than one module speaks of.
LEARNER = "learner"
ROLLOUTS = "rollouts"
ENVIRONMENTS = "environments"
SAMPLER = "sampler"
AGENTS = "agents"
# So many names of a list, and waits of a message, are told.
_NAMES, _LINES = 8, 20


@dataclasses.dataclass(eq=False)
class Wait:
  """A party that waits.

  Attributes:
    who: Its name.
    whom: Name of what it waits for.
    what: What that is to bring, in words; a function is asked when it is told.
    since: When it began, by `time.monotonic`.
    counts: Whether it may be too long by itself. Otherwise it is told where
      another party waits too long for this one.
    told_by: Who has told of it, None if nobody has.
    told_at: When that was.
  """

  who: str
  whom: str
  what: str | Callable[[], str]
  since: float
  counts: bool
  told_by: "Watch | None" = None
  told_at: float = 0.0

  def line(self, now: float) -> str:
    """It in words."""
    # The time of day on which it began, for whoever reads other logs too.
    began = time.strftime(
      "%H:%M:%S", time.localtime(time.time() - now + self.since)
    )
    return (
      f"{self.who}: waiting for {self.whom} since {began} "
      f"({now - self.since:.0f} s): {self.said()}"
    )

  def said(self) -> str:
    """What it waits for, or why that cannot be told."""
    if isinstance(self.what, str):
      return self.what
    try:
      return self.what()
    except Exception as error:
      # It reads what another thread is changing: the watch is to go on.
      return f"not known ({type(error).__name__}: {error})"


# Waits of this process by number, in the order in which they began. Whether one
# is over and who has told of it change under the lock.
_waits: dict[int, Wait] = {}
# Seconds that waits of these parties took which are over, by who waited for
# whom. Others wait for as many as there are episodes.
_TIMED = (LEARNER, ROLLOUTS)
_took: collections.Counter[tuple[str, str]] = collections.Counter()
_lock = threading.Lock()
_numbers = itertools.count()


@contextlib.contextmanager
def on(
  who: str,
  whom: str,
  what: str | Callable[[], str],
  *,
  counts: bool = True,
) -> Iterator[None]:
  """What happens inside is waiting; see `Wait`. Any thread may call it."""
  number = next(_numbers)
  wait = _waits[number] = Wait(who, whom, what, time.monotonic(), counts)
  try:
    yield
  finally:
    with _lock:
      del _waits[number]
      if who in _TIMED:
        _took[who, whom] += time.monotonic() - wait.since
    if wait.told_by is not None:
      wait.told_by.over(wait)


def current() -> list[Wait]:
  """The waits of this moment, the longest first."""
  return list(_waits.copy().values())


def took() -> dict[tuple[str, str], float]:
  """Seconds that waits of learner and rollouts took, by who waited for whom.

  Those that are over, since the process began.
  """
  with _lock:
    return dict(_took)


def named(names: Sequence[str]) -> str:
  """Some names of a list that may be long, and how many more there are."""
  more = len(names) - _NAMES
  some = ", ".join(names[:_NAMES])
  return f"{some} and {more} more" if more > 0 else some


def circle(waits: Sequence[Wait]) -> list[str]:
  """Parties that wait for each other, the first one again at the end.

  Args:
    waits: Among which to look.

  Returns:
    Names, none if nobody waits in a circle.
  """
  after: dict[str, list[str]] = {}
  for wait in waits:
    after.setdefault(wait.who, []).append(wait.whom)
  done: set[str] = set()

  def follow(party: str, path: list[str]) -> list[str]:
    if party in path:
      return [*path[path.index(party) :], party]
    if party in done:
      return []
    done.add(party)
    for following in after.get(party, ()):
      if found := follow(following, [*path, party]):
        return found
    return []

  for party in after:
    if found := follow(party, []):
      return found
  return []


class Watch:
  """Tells of waits that last longer than a limit, from a thread of its own.

  It is a context. A wait is told again after each further limit, and once more
  when it is over.

  Args:
    limit_s: Seconds that a wait may take.
    note: Called with the name of an event and its fields: "waiting" and
      "went_on"; by any thread.
  """

  def __init__(self, limit_s: float, note: Callable[..., Any]):
    self._limit_s = limit_s
    self._note = note
    self._lock = threading.Lock()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._run, name="waits", daemon=True)

  def __enter__(self):
    self._thread.start()
    return self

  def __exit__(self, *_):
    with self._lock:
      self._ended.set()
    self._thread.join()

  def _run(self) -> None:
    while not self._ended.wait(self._limit_s / 4):
      self.look(time.monotonic())

  def look(self, now: float) -> None:
    """Tells of what is too long, if it was not told within the limit."""
    waits = current()
    late = [
      wait
      for wait in waits
      if wait.counts and now - wait.since >= self._limit_s
    ]
    if all(
      wait.told_by is self and now - wait.told_at < self._limit_s
      for wait in late
    ):
      return
    # The late ones, and what those do meanwhile that they wait for.
    parties = {wait.whom for wait in late}
    shown = [wait for wait in waits if wait in late]
    while more := [w for w in waits if w not in shown and w.who in parties]:
      shown += more
      parties |= {wait.whom for wait in shown}
    lines, fields = self._words(shown, circle(late), now)
    with self._lock:
      with _lock:
        there = [wait for wait in late if wait in _waits.values()]
        for wait in there:
          wait.told_by, wait.told_at = self, now
      # That they are over is told after it, by who waits for this lock.
      if there and not self._ended.is_set():
        _log.warning("waiting for long:\n  %s", "\n  ".join(lines))
        self._noted("waiting", **fields)

  def _words(
    self, shown: list[Wait], found: list[str], now: float
  ) -> tuple[list[str], dict[str, Any]]:
    """Lines of a log, and fields of an event."""
    lines = [wait.line(now) for wait in shown[:_LINES]]
    if len(shown) > _LINES:
      lines.append(f"and {len(shown) - _LINES} more")
    if found:
      lines.append("they wait for each other: " + " -> ".join(found))
    fields: dict[str, Any] = {
      "waits": [
        {
          "who": wait.who,
          "whom": wait.whom,
          "what": wait.said(),
          "since": time.time() - now + wait.since,
          "seconds": now - wait.since,
        }
        for wait in shown[:_LINES]
      ]
    }
    if found:
      fields["circle"] = found
    return lines, fields

  def _noted(self, event: str, **fields: Any) -> None:
    """Whoever waits is not to fail because a full disk takes no note."""
    try:
      self._note(event, **fields)
    except OSError as error:
      _log.warning("not noted that %s: %s", event, error)

  def over(self, wait: Wait) -> None:
    """Takes in that a wait that was told is over."""
    waited = time.monotonic() - wait.since
    with self._lock:
      if not self._ended.is_set():
        _log.info(
          "%s: went on after %.0f s of waiting for %s",
          wait.who,
          waited,
          wait.whom,
        )
        self._noted("went_on", who=wait.who, whom=wait.whom, waited=waited)
