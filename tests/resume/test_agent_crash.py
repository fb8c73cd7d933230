"""Runs that agents play for, killed where they issue, take in and hand over."""

import os
import pathlib
import random
import signal
import sys
import time

import agent_runs
import crashing
import pytest

from steppo_jax.processes import kill_points
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics

pytestmark = pytest.mark.crash
INSTANTS = int(os.environ.get("STEPPO_CRASHES", "30"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return agent_runs.model(tmp_path_factory.mktemp("released") / "model")


def made(folder, tmp_path):
  agent_runs.programs(tmp_path)
  command = f"{sys.executable} {tmp_path / 'my_agent.py'}"
  return agent_runs.options(folder, tmp_path, command=command)


def told(config):
  """Entries and tokens of all episodes of training."""
  path = f"{config.run_dir}/{run_folder.POOL_NAME}"
  with pool_lib.Pool(path) as pool:
    entries = pool_entries.entries(pool, channel="train")
    records = pool_entries.trajectories(pool, [e.uid for e in entries])
  tokens = [[s.response_ids.tolist() for s in one.steps] for one in records]
  return entries, tokens


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
  """What a run leaves that nothing ends."""
  tmp_path = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(agent_runs.ROOT))
    config = made(folder, tmp_path)
    seconds = crashing.timed(config)
  return *told(config), seconds


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", kill_points.AGENT_POINTS)
def test_a_killed_run_learns_of_each_episode_once(
  folder, tmp_path, monkeypatch, whole, name, count
):
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  config = made(folder, tmp_path)
  status = crashing.session(config, f"{name}={count}")
  assert status in (-9, 0)
  if status:
    assert crashing.session(config) == 0
  entries, tokens = told(config)
  assert [e.state for e in entries] == ["consumed"] * 4
  assert [e.uid for e in entries] == [e.uid for e in whole[0]]
  # The same keys, prompts and weights: the same tokens.
  assert tokens == whole[1]
  lines = metrics.read_jsonl(config.run_dir)
  assert [line["update"] for line in lines] == [0, 1, 2]


def agents_of(pid):
  """The processes of agents that a run has started."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      parent = path.read_text().rpartition(")")[2].split()[1]
      command = path.with_name("cmdline").read_bytes()
    except OSError:  # It has ended.
      continue
    if int(parent) == pid and b"my_agent.py" in command:
      found.append(int(path.parent.name))
  return found


@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_kill_at_any_instant_loses_nothing_and_doubles_nothing(
  folder, tmp_path, monkeypatch, whole, seed
):
  """Of the learner with its gateway, or of one of the agents."""
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  config = made(folder, tmp_path)
  draw = random.Random(seed)
  process = crashing.start(config)
  time.sleep(draw.uniform(0, whole[2]))
  killed = []
  if seed % 2:
    process.kill()
  else:
    while not (killed := agents_of(process.pid)) and process.is_alive():
      time.sleep(0.05)
    for pid in killed[:1]:
      os.kill(pid, signal.SIGKILL)
  process.join(300)
  assert process.exitcode in (0, -signal.SIGKILL)
  if process.exitcode:
    assert crashing.session(config) == 0
  entries, tokens = told(config)
  assert [e.uid for e in entries] == [e.uid for e in whole[0]]
  states = [e.state for e in entries]
  assert states.count("consumed") + states.count("failed") == 4
  assert states.count("failed") <= len(killed[:1])
  if "failed" not in states:
    assert tokens == whole[1]
