"""Sessions of one small run, each a process that may be killed."""

import dataclasses
import multiprocessing
import os
import pathlib
import time

from small_runs import small_config

from steppo_jax import trees
from steppo_jax.models.formats import weights
from steppo_jax.processes import kill_points, signals
from steppo_jax.rollout import codec as trajectory_bytes
from steppo_jax.rollout import journal
from steppo_jax.storage import checkpoint, manifest, metrics
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import train

UPDATES = 4

# What differs from one run to the next: time, and nothing else.
_TIMES = ("minutes", "eval/seconds", "time/", "_per_s")


def options(folder: pathlib.Path, name: str):
  """A run that saves after each update and keeps every journal."""
  made = small_config(
    folder, num_updates=UPDATES, tasks_per_update=4, keep_checkpoints=2,
    keep_journals=UPDATES,
  )  # fmt: skip
  return dataclasses.replace(
    made,
    run_dir=str(folder / name),
    rollout=dataclasses.replace(made.rollout, max_steps=3),
    evaluation=dataclasses.replace(made.evaluation, episodes=2),
  )


def _session(config, kill_at: str) -> None:
  """Trains; the status is what the command line would end with."""
  kill_points.arm(kill_at)
  code = 0
  try:
    with signals.Handler() as handler:
      folder = run_folder.open_folder(config, "test", "test")
      train.train(
        config, folder, on_update=lambda *_: None, on_episode=lambda _: None,
        handler=handler,
      )  # fmt: skip
  except signals.Stopped:
    code = signals.RESTARTABLE
  os._exit(code)


def start(config, kill_at: str = ""):
  """A session that has begun; imports are done before, once for all."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["crashing"])
  process = context.Process(target=_session, args=(config, kill_at))
  process.start()
  return process


def session(config, kill_at: str = "") -> int:
  """Runs one session to its end; returns its status, negative for a signal."""
  process = start(config, kill_at)
  process.join(300)
  assert process.exitcode is not None
  return process.exitcode


def timed(config) -> float:
  """Seconds of a session that nothing ends."""
  began = time.monotonic()
  assert session(config) == 0
  return time.monotonic() - began


def check_interval(config) -> None:
  """What was told is at most one interval ahead of what a restart brings."""
  folder = pathlib.Path(config.run_dir)
  if not (folder / metrics.FILE_NAME).exists():
    return
  lines = metrics.read_jsonl(folder)
  told = lines[-1]["update"] if lines else 0
  with checkpoint.Checkpoints(folder / "checkpoints", 2) as store:
    assert told - (store.latest() or 0) <= config.checkpoint_every


def result(config) -> dict:
  """Everything that must not depend on where a run was killed."""
  folder = pathlib.Path(config.run_dir)
  params, _ = weights.load_params(folder / run_folder.POLICY_NAME)
  saved = folder / run_folder.CHECKPOINTS_NAME / str(UPDATES)
  found = {
    "policy": {k: v.tobytes() for k, v in trees.flatten(params).items()},
    # A digest of each parameter, optimizer leaf and counter.
    "state": manifest.read(saved)["shards"],
    "metrics": [
      {k: v for k, v in line.items() if not any(t in k for t in _TIMES)}
      for line in metrics.read_jsonl(folder)
    ],
    "trajectories": {},
  }
  for update in range(UPDATES):
    path = journal.path_of(folder / run_folder.JOURNALS_NAME, update, 0)
    held = journal.read(path)
    assert held.end is not None
    found["trajectories"][update] = {
      uid: trajectory_bytes.encode(one)
      for uid, one in held.trajectories.items()
    }
    assert sorted(held.trajectories) == sorted(held.belongs["episodes"])
  return found
