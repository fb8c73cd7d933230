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
import time

import agent_runs
import agents_ahead
import crashing
import full_disks
import plain_agent
import pytest

from steppo_jax.rollout import journal, pool_entries
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics

INSTANTS = int(os.environ.get("STEPPO_CRASHES", "60"))
# Places of what plays, and of what learns.
PLACES = (
  "agents: issued=1", "agents: issued=2", "pool: half a finish=2",
  "pool: half a finish=7", "pool: finished=1", "pool: finished=6",
  "journal: opened=3", "journal: half a frame=5", "rollout: an episode=5",
  "rollout: finished=2", "pool: leased=2", "update: learned=2",
  "update: handed over=2", "train: saved=1", "pool: consumed=1",
)  # fmt: skip
TRAINED_PLACES = (
  "pool: leased=2", "update: packed=2", "update: handed over=2",
  "train: saved=1", "train: updates done=1",
)  # fmt: skip
WANTED = sorted(
  e.uid for u in range(agents_ahead.UPDATES) for e in agents_ahead.episodes(u)
)


def learn(made, players, *, first=0, last=agents_ahead.UPDATES):
  """What the learner does, but the learning: the episodes by update."""
  found = {}
  made.set_policy(first, first)
  for update in range(first, last):
    found[update], _ = made.play(update, agents_ahead.episodes(update))
    made.set_policy(update + 1, update + 1)
    players.settle(update)
  return found


def learn_on(made, players):
  for update in range(1, agents_ahead.UPDATES):
    made.play(update, agents_ahead.episodes(update))
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
  with agents_ahead.playing(tmp_path, told) as (made, players, engine):
    before = learn(made, players, last=2)
    old = players._sessions.keys.of("1-0-0", 1)
    until = time.monotonic() + 60
    # The learner is at update 2: those of 2 and 3 are played now.
    while made.finished_updates() < 2 and time.monotonic() < until:
      time.sleep(0.05)
  assert made.finished_updates() == 2
  acked = agents_ahead.acknowledged(tmp_path)
  assert len(acked) > 8
  # As if the weights of update 1 were the last that had been saved.
  with agents_ahead.playing(tmp_path, told) as (made, players, again):
    after = learn(made, players, first=1)
    players.settle()
    # An agent that has outlived its run speaks in no session of the next.
    monkeypatch.setenv("OPENAI_API_KEY", old)
    with pytest.raises(RuntimeError, match=r"status .*401"):
      plain_agent.post(f"{players.url}/sessions/1-0-0/finish", {})
    monkeypatch.setenv("OPENAI_API_KEY", players._sessions.keys.of("1-0-0", 1))
    with pytest.raises(RuntimeError, match=r"status .*4(00|22)"):
      plain_agent.post(f"{players.url}/sessions/1-0-0/finish", {})
  assert not again.answered  # All was there.
  for one, other in zip(before[1], after[1], strict=True):
    assert journal.same(one, other)
  trained = before[0] + [t for update in after.values() for t in update]
  assert sorted(t.uid for t in trained) == WANTED
  for key, version in engine.answered:
    assert key[1] - agents_ahead.BOUND <= version
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
  tmp_path,
):
  """What waits for the pool does not wait for ever."""
  with agents_ahead.playing(tmp_path) as (made, players, _):
    learn(made, players, last=1)
    sizes = [p.stat().st_size for p in tmp_path.glob("pool*")]
    with (
      full_disks.full_after(max(sizes) + 4096),
      pytest.raises(RuntimeError, match="cannot be read or written"),
    ):
      learn_on(made, players)
  acked = agents_ahead.acknowledged(tmp_path)
  with agents_ahead.playing(tmp_path) as (made, players, _):
    found = learn(made, players, first=1)
    players.settle()
  rewards = {t.uid: t.total_reward for of in found.values() for t in of}
  later = {uid: x for uid, x in acked.items() if uid in rewards}
  assert {uid: rewards[uid] for uid in later} == pytest.approx(later)
  entries, _ = states(tmp_path)
  assert {e.state for e in entries} <= {"consumed", "failed"}
  assert sorted(e.uid for e in entries) == WANTED


# What is killed in the middle of training.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return agent_runs.model(tmp_path_factory.mktemp("released") / "model")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)


def options(folder, tmp_path):
  made = agent_runs.options(
    folder, tmp_path, command=agents_ahead.command(tmp_path)
  )
  return dataclasses.replace(
    made,
    num_updates=agents_ahead.UPDATES,
    tasks_per_update=agents_ahead.TASKS,
    group_size=agents_ahead.GROUP,
    checkpoint_every=1,
    keep_journals=agents_ahead.UPDATES,
    rollout=dataclasses.replace(made.rollout, staleness=agents_ahead.BOUND),
  )


def journaled(run):
  """Every trajectory of the journals by update; a uid occurs once."""
  found = collections.defaultdict(dict)
  for path in run.glob("journal/*.journal"):
    with contextlib.suppress(ValueError):  # Its first frame is not whole.
      held = journal.read(path)
      found[held.belongs["update"]] |= held.trajectories
  uids = [uid for of in found.values() for uid in of]
  assert len(uids) == len(set(uids))
  return found


def check(run, tmp_path, before):
  """What holds at any time; gives what has ended, as it is kept from now on."""
  if not (run / run_folder.POOL_NAME).exists():
    return {}
  entries, records = states(run)
  of = {e.uid: e for e in entries}
  counted = collections.Counter(e.state for e in entries)
  between = sum(
    counted[s] for s in ("issued", "running", "finished", "ready", "leased")
  )
  assert len(entries) == counted["consumed"] + counted["failed"] + between
  assert all((e.state == "failed") == bool(e.cause) for e in entries)
  for uid, reward in agents_ahead.acknowledged(tmp_path).items():
    assert of[uid].state in ("finished", "ready", "leased", "consumed")
    assert of[uid].reward == pytest.approx(reward)
  for uid, one in before.items():
    assert of[uid].state not in ("issued", "running")
    if uid in records:  # Those of old updates are let go of.
      assert journal.same(one, records[uid])
  for update, held in journaled(run).items():
    stale = [update - s.policy_version for t in held.values() for s in t.steps]
    assert all(0 <= k <= agents_ahead.BOUND for k in stale)
    assert all(of[uid].state not in ("issued", "running") for uid in held)
  return {u: t for u, t in records.items() if of[u].state != "running"}


def check_end(run, tmp_path, before):
  """What holds of a run that has come to its end."""
  check(run, tmp_path, before)
  entries, _ = states(run)
  assert sorted(e.uid for e in entries) == WANTED
  assert {e.state for e in entries} <= {"consumed", "failed"}
  held = journaled(run)
  assert sorted(uid for of in held.values() for uid in of) == WANTED
  failed = {e.uid for e in entries if e.state == "failed"}
  assert failed == {
    uid for of in held.values() for uid, t in of.items() if t.error is not None
  }


def check_trained(tmp_path):
  """Each update learned of its own episodes, and of the same ones each time."""
  lines = [x.split() for x in (tmp_path / "trained").read_text().splitlines()]
  digests = collections.defaultdict(set)
  # A kill may cut the last line of a session.
  for update, uid, digest in (x for x in lines if len(x) == 3):
    assert uid.split("-")[0] == update
    digests[uid].add(digest)
  assert sorted(digests) == WANTED
  held = {u: t for of in journaled(tmp_path).values() for u, t in of.items()}
  for uid, found in digests.items():
    assert found == {agents_ahead.digest(held[uid])}


@pytest.fixture(scope="module")
def scripted_seconds(tmp_path_factory):
  """Of a scripted run that nothing ends."""
  tmp_path = tmp_path_factory.mktemp("scripted")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(agent_runs.ROOT))
    began = time.monotonic()
    assert agents_ahead.session(tmp_path) == 0
  check_end(tmp_path, tmp_path, {})
  check_trained(tmp_path)
  return time.monotonic() - began


@pytest.mark.crash
@pytest.mark.parametrize("case", PLACES)
def test_a_kill_at_a_place_loses_no_episode_of_agents(tmp_path, case):
  assert agents_ahead.session(tmp_path, case) == -signal.SIGKILL
  before = check(tmp_path, tmp_path, {})
  assert agents_ahead.session(tmp_path) == 0
  check_end(tmp_path, tmp_path, before)
  check_trained(tmp_path)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(INSTANTS))
def test_a_kill_at_any_instant_loses_no_episode_of_agents(
  tmp_path, seed, scripted_seconds
):
  """Of learner and gateway twice, and of an agent before one of them."""
  begin = lambda: agents_ahead.start(tmp_path, update_s=0.2)
  before = kill_twice(begin, tmp_path, tmp_path, seed, scripted_seconds)
  assert agents_ahead.session(tmp_path) == 0
  check_end(tmp_path, tmp_path, before)
  check_trained(tmp_path)


def kill_twice(begin, run, tmp_path, seed, seconds):
  """Kills two sessions, and an agent of one of them."""
  draw, before = random.Random(seed), {}
  for kill in range(2):
    spared = (seed + kill) % 2
    process = begin()
    until = time.monotonic() + draw.uniform(0, seconds)
    while time.monotonic() < until and process.is_alive():
      time.sleep(0.02)
      if not spared and draw.random() < 0.05:
        for pid in agents_ahead.agents_of(process.pid)[:1]:
          with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            spared = True
    process.kill()
    process.join()
    before = check(run, tmp_path, before)
  return before


# The same with a model that learns.


def check_metrics(run):
  lines = metrics.read_jsonl(run)
  updates = list(range(agents_ahead.UPDATES + 1))
  assert [line["update"] for line in lines] == updates
  assert all(line["rollout/episodes"] == 4 for line in lines[1:])
  ages = {
    int(name.rpartition("/")[2])
    for line in lines
    for name in line
    if name.startswith("rollout/staleness_share/")
  }
  assert ages <= set(range(agents_ahead.BOUND + 1))


@pytest.fixture(scope="module")
def seconds(folder, tmp_path_factory):
  """Of a run that nothing ends."""
  tmp_path = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(agent_runs.ROOT))
    made = options(folder, tmp_path)
    found = crashing.timed(made)
  check_end(pathlib.Path(made.run_dir), tmp_path, {})
  check_metrics(made.run_dir)
  return found


@pytest.mark.slow
def test_a_run_of_agents_is_trained_while_they_play(seconds):
  assert seconds > 0  # See the fixture.


@pytest.mark.crash
@pytest.mark.parametrize("case", TRAINED_PLACES)
def test_a_run_that_is_killed_at_a_place_learns_of_each_episode_once(
  folder, tmp_path, case
):
  made = options(folder, tmp_path)
  run = pathlib.Path(made.run_dir)
  assert crashing.session(made, case) == -signal.SIGKILL
  before = check(run, tmp_path, {})
  assert crashing.session(made) == 0
  check_end(run, tmp_path, before)
  check_metrics(run)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(INSTANTS // 6))
def test_a_run_that_is_killed_at_any_instant_learns_of_each_episode_once(
  folder, tmp_path, seed, seconds
):
  made = options(folder, tmp_path)
  run = pathlib.Path(made.run_dir)
  begin = lambda: crashing.start(made)
  before = kill_twice(begin, run, tmp_path, seed, seconds)
  assert crashing.session(made) == 0
  check_end(run, tmp_path, before)
  check_metrics(run)
