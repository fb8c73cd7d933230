"""Agents that play while the learner works: none is stale, lost or doubled.

The gateway lives in the process of the learner, so that a kill of one is a kill
of both; agents are processes of their own, and are killed by themselves.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import sys
import time

import agent_runs
import crashing
import full_disks
import numpy as np
import pytest
import vocabularies

from steppo_jax import types
from steppo_jax.processes import hosts
from steppo_jax.rollout import journal, loop, pool_entries
from steppo_jax.rollout import options as rollout_options
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.tokenizer import loading
from steppo_jax.training import agents, ahead, config

BOUND, UPDATES, TASKS, GROUP = 2, 4, 2, 2
INSTANTS = int(os.environ.get("STEPPO_CRASHES", "60"))
AGENT = pathlib.Path(agent_runs.__file__).with_name("plain_agent.py")
PLACES = (
  "agents: issued=1", "agents: issued=3", "pool: half a finish=2",
  "pool: half a finish=7", "pool: finished=1", "pool: finished=6",
  "journal: half a frame=5", "rollout: an episode=5", "rollout: finished=2",
  "pool: leased=2", "update: packed=2", "update: handed over=2",
  "train: saved=1", "pool: consumed=1", "train: updates done=1",
)  # fmt: skip


def command(tmp_path):
  return f"{sys.executable} {AGENT} {tmp_path / 'acknowledged'}"


def acknowledged(tmp_path):
  """Rewards of the episodes of training whose end an agent saw taken."""
  path = tmp_path / "acknowledged"
  lines = path.read_text().splitlines() if path.exists() else []
  pairs = [line.split() for line in lines]
  return {u: float(x) for u, x in pairs if not u.startswith("evaluation")}


class Engine:
  """Answers at once, and notes which weights answered whom."""

  compiles, num_slots = 0, 4

  def __init__(self, tokenizer):
    self.counters = types.EngineCounters()
    self.version, self.answered, self._asked = None, [], []
    self._ids = np.array([5, tokenizer.end_of_turn_id], np.int32)

  def set_params(self, params, version):
    self.swap(self.prepare(params), version)

  def prepare(self, params):
    return params

  def swap(self, prepared, version):
    assert not self._asked, "answers are under way"
    assert prepared == version
    self.version = version

  def submit(self, requests):
    self._asked += requests

  def poll(self):
    asked, self._asked = self._asked, []
    self.answered += [(request.key, self.version) for request in asked]
    logp = np.full(len(self._ids), -1.0, np.float32)
    answer = types.Response(self._ids, logp, "stop", self.version)
    return [(request, answer) for request in asked]

  def so_far(self):
    return {}

  def cut(self, session):
    pass

  def release(self, session):
    pass


def episodes(update):
  return [
    loop.Episode(
      f"{update}-{g}-{j}",
      types.Task(f"t{update}-{g}", "test", "", {}),
      j,
      (0, update, g, j),
    )
    for g in range(TASKS)
    for j in range(GROUP)
  ]


@contextlib.contextmanager
def playing(tmp_path, monkeypatch, told=None):
  """An `Ahead` whose episodes agents play, and the engine behind it."""
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)
  name = tmp_path / "tokenizer"
  if not name.exists():
    vocabularies.write_folder(
      name, vocabularies.byte_level(), template=vocabularies.CHATML
    )
  tokenizer = loading.load(name)
  chosen = config.RunConfig(
    weights="none", num_updates=UPDATES, tasks_per_update=TASKS,
    group_size=GROUP, run_dir=str(tmp_path),
    rollout=rollout_options.RolloutConfig(
      source="agents", staleness=BOUND, max_steps=4, max_tokens=512
    ),
    agents=rollout_options.AgentConfig(
      command=command(tmp_path), processes=4, seconds=120.0
    ),
  )  # fmt: skip
  engine = Engine(tokenizer)
  with contextlib.closing(
    agents.AgentPlayers(
      chosen, engine, tokenizer, pool=tmp_path / run_folder.POOL_NAME,
      hosts=hosts.ALONE, waiting=contextlib.nullcontext,
    )
  ) as players:  # fmt: skip
    made = ahead.Ahead(chosen, tmp_path, players, (told or []).append, episodes)
    with contextlib.closing(made):
      yield made, players, engine


def learn(made, players, *, first=0, last=UPDATES):
  """What the learner does, but the learning: the episodes by update."""
  found = {}
  made.set_policy(first, first)
  for update in range(first, last):
    found[update], _ = made.play(update, episodes(update))
    made.set_policy(update + 1, update + 1)
    players.settle(update)
  return found


def learn_on(made, players):
  for update in range(1, UPDATES):
    made.play(update, episodes(update))
    made.set_policy(update + 1, update + 1)
    players.settle(update)


def states(path):
  """Numbers of the training episodes of a pool by state, and all entries."""
  with pool_lib.Pool(path / run_folder.POOL_NAME) as pool:
    entries = pool_entries.entries(pool, channel="train")
    records = pool_entries.trajectories(pool, [e.uid for e in entries])
  return entries, {one.uid: one for one in records}


def test_agents_play_ahead_within_the_bound_and_go_on_after_an_end(
  tmp_path, monkeypatch
):
  told = []
  with playing(tmp_path, monkeypatch, told) as (made, players, engine):
    before = learn(made, players, last=2)
    until = time.monotonic() + 60
    # The learner is at update 2: those of 2 and 3 are played now.
    while made.finished_updates() < 2 and time.monotonic() < until:
      time.sleep(0.05)
  assert made.finished_updates() == 2
  acked = acknowledged(tmp_path)
  assert len(acked) > 8
  # As if the weights of update 1 were the last that had been saved.
  with playing(tmp_path, monkeypatch, told) as (made, players, again):
    after = learn(made, players, first=1)
    players.settle()
  assert not again.answered  # All was there.
  for one, other in zip(before[1], after[1], strict=True):
    assert journal.same(one, other)
  trained = before[0] + [t for update in after.values() for t in update]
  assert sorted(t.uid for t in trained) == sorted(
    e.uid for update in range(UPDATES) for e in episodes(update)
  )
  for key, version in engine.answered:
    assert key[1] - BOUND <= version
  rewards = {t.uid: t.total_reward for t in trained if t.error is None}
  assert {uid: rewards[uid] for uid in acked} == pytest.approx(acked)
  failed = {t.uid for t in trained if t.error is not None}
  assert {t.error.partition(":")[0] for t in trained if t.error} <= {
    "AgentExit"
  }
  entries, _ = states(tmp_path)
  assert {e.uid for e in entries if e.state == "failed"} == failed
  assert {e.state for e in entries if e.uid not in failed} == {"consumed"}


def test_a_full_disk_ends_the_run_and_takes_nothing_that_was_acknowledged(
  tmp_path, monkeypatch
):
  """What waits for the pool does not wait for ever."""
  with playing(tmp_path, monkeypatch) as (made, players, _):
    learn(made, players, last=1)
    sizes = [p.stat().st_size for p in tmp_path.glob("pool*")]
    with (
      full_disks.full_after(max(sizes) + 4096),
      pytest.raises(RuntimeError, match="cannot be read or written"),
    ):
      learn_on(made, players)
  acked = acknowledged(tmp_path)
  with playing(tmp_path, monkeypatch) as (made, players, _):
    found = learn(made, players, first=1)
    players.settle()
  rewards = {t.uid: t.total_reward for of in found.values() for t in of}
  later = {uid: x for uid, x in acked.items() if uid in rewards}
  assert {uid: rewards[uid] for uid in later} == pytest.approx(later)
  entries, _ = states(tmp_path)
  assert {e.state for e in entries} <= {"consumed", "failed"}
  assert len(entries) == UPDATES * TASKS * GROUP


# What is killed in the middle of training.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return agent_runs.model(tmp_path_factory.mktemp("released") / "model")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)


def options(folder, tmp_path):
  made = agent_runs.options(folder, tmp_path, command=command(tmp_path))
  return dataclasses.replace(
    made,
    num_updates=UPDATES,
    tasks_per_update=TASKS,
    group_size=GROUP,
    checkpoint_every=1,
    keep_journals=UPDATES,
    rollout=dataclasses.replace(made.rollout, staleness=BOUND),
  )


def journaled(config):
  """Every trajectory of the journals by update; a uid occurs once."""
  found = collections.defaultdict(dict)
  for path in pathlib.Path(config.run_dir).glob("journal/*.journal"):
    with contextlib.suppress(ValueError):  # Its first frame is not whole.
      held = journal.read(path)
      found[held.belongs["update"]] |= held.trajectories
  uids = [uid for of in found.values() for uid in of]
  assert len(uids) == len(set(uids))
  return found


def check(config, tmp_path, before):
  """What holds at any time: the records, which those before are among."""
  if not (pathlib.Path(config.run_dir) / run_folder.POOL_NAME).exists():
    return {}
  entries, records = states(pathlib.Path(config.run_dir))
  of = {e.uid: e for e in entries}
  counted = collections.Counter(e.state for e in entries)
  between = sum(
    counted[s] for s in ("issued", "running", "finished", "ready", "leased")
  )
  assert len(entries) == counted["consumed"] + counted["failed"] + between
  assert all((e.state == "failed") == bool(e.cause) for e in entries)
  for uid, reward in acknowledged(tmp_path).items():
    assert of[uid].state in ("finished", "ready", "leased", "consumed")
    assert of[uid].reward == pytest.approx(reward)
  for uid, one in before.items():
    assert of[uid].state != "issued"
    if uid in records:  # Those of old updates are let go of.
      assert journal.same(one, records[uid])
  for update, held in journaled(config).items():
    stale = [update - s.policy_version for t in held.values() for s in t.steps]
    assert all(0 <= k <= BOUND for k in stale)
    assert all(of[uid].state not in ("issued", "running") for uid in held)
  return {u: t for u, t in records.items() if of[u].state != "running"}


def check_end(config, tmp_path, before):
  check(config, tmp_path, before)
  entries, _ = states(pathlib.Path(config.run_dir))
  wanted = sorted(e.uid for u in range(UPDATES) for e in episodes(u))
  assert sorted(e.uid for e in entries) == wanted
  assert {e.state for e in entries} <= {"consumed", "failed"}
  held = journaled(config)
  assert sorted(uid for of in held.values() for uid in of) == wanted
  failed = {e.uid for e in entries if e.state == "failed"}
  assert failed == {
    uid for of in held.values() for uid, t in of.items() if t.error is not None
  }
  lines = metrics.read_jsonl(config.run_dir)
  assert [line["update"] for line in lines] == list(range(UPDATES + 1))
  assert all(line["rollout/episodes"] == 4 for line in lines[1:])
  ages = {
    int(name.rpartition("/")[2])
    for line in lines
    for name in line
    if name.startswith("rollout/staleness_share/")
  }
  assert ages <= set(range(BOUND + 1))


@pytest.fixture(scope="module")
def seconds(folder, tmp_path_factory):
  """Of a run that nothing ends."""
  tmp_path = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(agent_runs.ROOT))
    made = options(folder, tmp_path)
    found = crashing.timed(made)
  check_end(made, tmp_path, {})
  return found


@pytest.mark.slow
def test_a_run_of_agents_is_trained_on_while_they_play(seconds):
  assert seconds > 0  # See `check_end`.


@pytest.mark.crash
@pytest.mark.parametrize("case", PLACES)
def test_a_kill_at_a_place_loses_no_episode_of_agents(folder, tmp_path, case):
  made = options(folder, tmp_path)
  assert crashing.session(made, case) == -signal.SIGKILL
  before = check(made, tmp_path, {})
  assert crashing.session(made) == 0
  check_end(made, tmp_path, before)


def agents_of(pid):
  """The processes of agents that a run has started."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      parent = path.read_text().rpartition(")")[2].split()[1]
      said = path.with_name("cmdline").read_bytes()
    except OSError:  # It has ended.
      continue
    if int(parent) == pid and AGENT.name.encode() in said:
      found.append(int(path.parent.name))
  return found


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_kill_at_any_instant_loses_no_episode_of_agents(
  folder, tmp_path, seed, seconds
):
  """Of learner and gateway twice, and of an agent before one of them."""
  made = options(folder, tmp_path)
  draw, before = random.Random(seed), {}
  for kill in range(2):
    spared = (seed + kill) % 2
    process = crashing.start(made)
    until = time.monotonic() + draw.uniform(0, seconds)
    while time.monotonic() < until and process.is_alive():
      time.sleep(0.02)
      if not spared and draw.random() < 0.05:
        for pid in agents_of(process.pid)[:1]:
          with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            spared = True
    process.kill()
    process.join()
    before = check(made, tmp_path, before)
  assert crashing.session(made) == 0
  check_end(made, tmp_path, before)
