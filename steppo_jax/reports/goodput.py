"""How much of a run's time went where, from its event log."""

import os
import pathlib
from typing import NamedTuple

from steppo_jax import files
from steppo_jax.storage import events


class Goodput(NamedTuple):
  """The time of a run, over all its sessions.

  Attributes:
    seconds: By cause, in the order of `storage.events.CAUSES`.
    wall_s: From the beginning of every session's process to the last thing it
      said.
    down_s: Between two sessions.
    sessions: Processes that worked on the run.
    by_update: The seconds of every update by cause, as far as they are of one.
  """

  seconds: dict[str, float]
  wall_s: float
  down_s: float
  sessions: int
  by_update: dict[int, dict[str, float]]

  @property
  def idle_s(self) -> float:
    """What no cause accounts for."""
    return self.wall_s - sum(self.seconds.values())

  @property
  def accounted(self) -> float:
    """Share of the wall time that has a cause."""
    return sum(self.seconds.values()) / self.wall_s if self.wall_s else 1.0


def read(run_dir: str | os.PathLike) -> Goodput | None:
  """The time of a run; None where it has no event log."""
  path = pathlib.Path(run_dir) / events.FILE_NAME
  if not path.is_file():
    return None
  seconds = dict.fromkeys(events.CAUSES, 0.0)
  by_update: dict[int, dict[str, float]] = {}
  wall = down = 0.0
  sessions, ended_at = 0, None
  zero = last = 0.0
  for _, line in files.read_lines(path, cut="any"):
    if line.get("event") == "start":
      wall, sessions, last = wall + last, sessions + 1, line["t"]
      if ended_at is not None:
        # Clocks of two machines may differ by more than the pause.
        down += max(0.0, line["at"] - line["t"] - ended_at)
      zero = line["at"] - line["t"]
    elif "seconds" in line:
      last = line["t1"]
      of_update = by_update.setdefault(line.get("update", -1), {})
      for cause, spent in line["seconds"].items():
        seconds[cause] = seconds.get(cause, 0.0) + spent
        of_update[cause] = of_update.get(cause, 0.0) + spent
    elif line.get("event") == "end":
      last = line["t"]
    ended_at = zero + last
  by_update.pop(-1, None)
  return Goodput(seconds, wall + last, down, sessions, by_update)


def table(run_dir: str | os.PathLike) -> list[str]:
  """The time of a run as lines of Markdown; none without an event log."""
  found = read(run_dir)
  if found is None or not found.wall_s:
    return []
  share = lambda spent: f"{100 * spent / found.wall_s:.1f} %"
  rows = [(c, s) for c, s in found.seconds.items() if s]
  rows.append(("idle (no cause known)", found.idle_s))
  lines = [
    "",
    f"Time: {found.wall_s:.1f} s in {found.sessions} "
    f"session{'s' if found.sessions > 1 else ''}, of which "
    f"{share(sum(found.seconds.values()))} have a cause; "
    f"{found.down_s:.1f} s between sessions.",
    "",
    "| cause | seconds | share |",
    "|---|---|---|",
  ]
  return lines + [f"| {c} | {s:.1f} | {share(s)} |" for c, s in rows]


def draw(axes, run_dir: str | os.PathLike) -> None:
  """Draws the seconds of every update, one colour a cause.

  Args:
    axes: Of matplotlib; left empty, and said so, without an event log.
    run_dir: The run folder.
  """
  found = read(run_dir)
  if found is None or not found.by_update:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no event log", ha="center", va="center")
    return
  updates = sorted(found.by_update)
  below = [0.0] * len(updates)
  for cause in events.CAUSES:
    heights = [found.by_update[u].get(cause, 0.0) for u in updates]
    if any(heights):
      axes.bar(updates, heights, 1.0, below, label=cause)
      below = [a + b for a, b in zip(below, heights, strict=True)]
  # The first update compiles, and would hide all others.
  shown = sorted(below)[: max(1, round(0.95 * len(below)))]
  axes.set(xlabel="update", ylabel="seconds", ylim=(0, 1.1 * shown[-1] or 1))
  axes.legend(fontsize="small")
