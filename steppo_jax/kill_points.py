"""Named places at which a test can end the process as `kill -9` would.

    STEPPO_KILL_AT="update: learned=2" python -m steppo_jax train ...

ends the process, without any clean-up, when it passes that place for the second
time. Without the variable a place costs one comparison. `tests/resume` goes
through all of them.
"""

import collections
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

_name, _, _count = os.environ.get(VARIABLE, "").rpartition("=")
_passed: collections.Counter[str] = collections.Counter()

if _name and (_name not in POINTS or not _count.isdecimal()):
  raise ValueError(
    f"{VARIABLE}={_name}={_count} names no place of kill_points.POINTS"
  )


def passed(name: str) -> None:
  """Marks a place; ends the process if it was asked to end here."""
  if name != _name:
    return
  _passed[name] += 1
  if _passed[name] == int(_count):
    os.kill(os.getpid(), signal.SIGKILL)
