"""Killed while rollouts ran ahead, a run loses and repeats no episode."""

import dataclasses
import os
import pathlib
import random
import signal
import time

import crashing
import pytest

from steppo_jax.rollout import codec, journal
from steppo_jax.storage import folder as run_folder

BOUND = 2
INSTANTS = int(os.environ.get("STEPPO_CRASHES", "60"))
PLACES = (
  "journal: half a frame=7", "journal: opened=3", "rollout: an episode=6",
  "rollout: finished=2", "update: packed=2", "update: handed over=2",
  "train: saved=1", "checkpoint: files written=2", "train: updates done=1",
)  # fmt: skip


def options(folder, name):
  made = crashing.options(folder, name)
  rollout = dataclasses.replace(made.rollout, staleness=BOUND)
  return dataclasses.replace(made, rollout=rollout)


def acknowledged(config):
  """What is in the journals: every trajectory's bytes by update and uid."""
  found = {}
  folder = pathlib.Path(config.run_dir) / run_folder.JOURNALS_NAME
  for path in folder.glob("*.journal"):
    try:
      held = journal.read(path)
    except ValueError:  # killed before its first frame was whole
      continue
    for uid, one in held.trajectories.items():
      found[held.belongs["update"], uid] = codec.encode(one)
  return found


def hold(config, before):
  """Goes on to the end: whatever was acknowledged is trained as it was."""
  assert crashing.session(config) == 0
  result = crashing.result(config)
  for (update, uid), kept in before.items():
    assert result["trajectories"][update][uid] == kept
  assert [line["update"] for line in result["metrics"]] == [0, 1, 2, 3, 4]
  for update, line in enumerate(result["metrics"][1:]):
    assert line["rollout/episodes"] == 4
    stale = [
      update - step.policy_version
      for frame in result["trajectories"][update].values()
      for step in codec.decode(*frame).steps
    ]
    assert 0 <= min(stale) <= max(stale) <= BOUND


@pytest.fixture(scope="module")
def seconds(tmp_path_factory):
  return crashing.timed(options(tmp_path_factory.mktemp("whole"), "run"))


@pytest.mark.crash
@pytest.mark.parametrize("case", PLACES)
def test_a_kill_at_a_place_loses_no_episode(tmp_path, case):
  config = options(tmp_path, "killed")
  assert crashing.session(config, case) == -signal.SIGKILL
  hold(config, acknowledged(config))


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_kill_at_any_instant_loses_no_episode(tmp_path, seed, seconds):
  config = options(tmp_path, "killed")
  draw, before = random.Random(seed), {}
  # Twice: a restart is killed as well.
  for _ in range(2):
    process = crashing.start(config)
    time.sleep(draw.uniform(0, seconds))
    process.kill()
    process.join()
    now = acknowledged(config)
    assert all(now[key] == kept for key, kept in before.items())
    before = now
  hold(config, before)
