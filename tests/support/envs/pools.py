"""Pools of small environments, and how their processes end."""

import pathlib
import time

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.workers import options as workers_options
from steppo_jax.envs.workers import pool as workers_pool

ECHO = "unruly:Echo"
QUICK = workers_options.WorkerLimits(
  start_s=20, reset_s=20, step_s=20, close_s=5, backoff_s=0.01,
  backoff_max_s=0.05,
)  # fmt: skip
TASK = types.Task("t", "echo", "echo", {"n": 1})


def pool(count=1, *, target=ECHO, limits=QUICK, **options):
  return workers_pool.Workers(base.Recipe(target, options), count, limits)


def gone(pid, within=20.0):
  """Whether a process ends in time; a zombie has not been reaped."""
  deadline = time.monotonic() + within
  while time.monotonic() < deadline:
    if not pathlib.Path(f"/proc/{pid}").exists():
      return True
    time.sleep(0.01)
  return False


def orphan_ended(pid, within=20.0):
  """Like `gone`; whoever inherits an orphan may leave it a zombie."""
  deadline = time.monotonic() + within
  while time.monotonic() < deadline:
    try:
      stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
      return True
    if stat.rpartition(")")[2].split()[0] in "ZX":
      return True
    time.sleep(0.01)
  return False
