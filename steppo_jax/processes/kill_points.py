"""Named places at which a test can end the process as `kill -9` would.

    STEPPO_KILL_AT="update: learned=2" python -m steppo_jax train ...

ends the process, without any clean-up, when it passes that place for the second
time. Without the variable a place costs one comparison. `tests/resume` goes
through all of them.
"""

import os
import signal

VARIABLE = "STEPPO_KILL_AT"

# In the order in which a run first comes by.
POINTS = (
  "train: folder held",
  "train: built",
  "train: warmed up",
  "metrics: before a line",
  "metrics: a line",
  "journal: half a frame",
  "journal: a frame",
  "journal: opened",
  "rollout: an episode",
  "rollout: finished",
  "update: packed",
  "update: learned",
  "update: handed over",
  "evaluation: played",
  "events: a line",
  "checkpoint: before",
  "checkpoint: room made",
  "checkpoint: handed to orbax",
  "checkpoint: files written",
  "manifest: written",
  "manifest: in place",
  "checkpoint: sealed",
  "checkpoint: old one removed",
  "journal: pruned",
  "train: saved",
  "train: updates done",
  "train: policy written",
)

# The same for what a run passes whose episodes agents play.
AGENT_POINTS = (
  "agents: issued",
  "pool: half a finish",
  "pool: finished",
  "pool: leased",
  "pool: consumed",
)


class _Armed:
  """Where the process ends, and how."""

  name = ""
  left = 0
  number = signal.SIGKILL


def arm(text: str) -> None:
  """Chooses where the process ends.

  Args:
    text: "NAME=COUNT", a name of `POINTS` and the pass that is the last, or
      "NAME=COUNT:SIGNAL" for another signal than SIGKILL. "" disarms.

  Raises:
    ValueError: it is neither.
  """
  name, _, rest = text.rpartition("=")
  count, _, number = rest.partition(":")
  if not text:
    _Armed.name = ""
    return
  if (
    name not in POINTS + AGENT_POINTS or not count.isdecimal() or int(count) < 1
  ):
    raise ValueError(
      f"{VARIABLE}={text!r} must be NAME=COUNT with a name of "
      "kill_points.POINTS and a count of at least 1"
    )
  number = number or "SIGKILL"
  if number not in signal.Signals.__members__:
    raise ValueError(f"{VARIABLE}={text!r}: {number!r} is no signal")
  _Armed.name, _Armed.left = name, int(count)
  _Armed.number = signal.Signals[number]


def passed(name: str) -> None:
  """Marks a place; ends the process if it was asked to end here."""
  if name != _Armed.name:
    return
  _Armed.left -= 1
  if _Armed.left == 0:
    os.kill(os.getpid(), _Armed.number)


arm(os.environ.get(VARIABLE, ""))
