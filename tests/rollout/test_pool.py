"""Episodes between players and learners: each is learnt from once."""

import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import full_disks
import numpy as np
import pytest

from steppo_jax import types
from steppo_jax.rollout import journal, pool_entries
from steppo_jax.rollout import pool as pool_lib


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def task(n=0):
  return types.Task(f"task{n}", "env", "family", {"n": n}, 3)


def trajectory(uid, of=None, *, error=None, reward=1.0, version=4):
  step = types.Step(
    np.array([1, 2], np.int32), np.array([3], np.int32), np.ones(1, bool),
    np.array([-0.5], np.float32), reward, uid, 0, (of or task()).uid, version,
    terminated=True, metadata={"invalid": False},
  )  # fmt: skip
  return types.Trajectory(uid, of or task(), (step,), None, True, error)


def issue(pool, group, size=2, **more):
  episodes = [(f"{group}-{j}", (7, j), j) for j in range(size)]
  return pool.issue(group, more.pop("task", task()), episodes, **more)


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def pool(tmp_path, clock):
  with pool_lib.Pool(tmp_path / "pool", capacity=6, clock=clock) as made:
    yield made


def states(pool):
  return {e.uid: e.state for e in pool_entries.entries(pool)}


def test_an_episode_goes_through_its_states_and_comes_out_as_it_was(pool):
  assert issue(pool, "g")
  assert not issue(pool, "g")
  ticket = pool.start("agent", 10)
  assert ticket == pool_lib.Ticket(
    "g-0", "g", task(), (7, 0), 0, "train", 1
  )  # fmt: skip
  assert states(pool) == {"g-0": "running", "g-1": "issued"}
  pool.finish(trajectory("g-0"), "agent", labels={"a": "b"}, notes="n")
  # Its group is not whole.
  assert states(pool)["g-0"] == "finished"
  assert pool.lease("learner", 10) == []
  pool.start("agent", 10)
  pool.finish(trajectory("g-1", error="Broken: so"), "agent")
  assert states(pool) == {"g-0": "ready", "g-1": "failed"}
  (found,) = pool.lease("learner", 10)
  assert journal.same(found, trajectory("g-0"))
  assert pool.consume("learner") == 1 == pool.consume("learner")
  assert pool.lease("another", 10) == []
  assert pool_entries.trajectories(pool, ["g-0"])
  pool.forget("learner")
  assert not pool_entries.trajectories(pool, ["g-0"])
  counts = pool_entries.counts(pool)
  assert {k: n for k, n in counts.items() if n} == {
    "consumed": 1, "failed": 1, "failed/Broken": 1,
  }  # fmt: skip


def test_finishing_twice_changes_nothing_and_nobody_else_finishes(pool):
  issue(pool, "g", 1)
  pool.start("agent", 10)
  with pytest.raises(pool_lib.Lost, match="not played by thief"):
    pool.finish(trajectory("g-0"), "thief")
  for _ in range(2):
    pool.finish(trajectory("g-0"), "agent", receipt="r")
  with pytest.raises(pool_lib.Lost, match="is ready"):
    pool.finish(trajectory("g-0", reward=9.0), "agent")
  assert pool_entries.receipt(pool, "g-0") == "r"
  with pytest.raises(ValueError, match="has no episode x"):
    pool.finish(trajectory("x"), "agent")
  assert pool.lease("learner", 10)[0].total_reward == 1.0


def test_the_oldest_whole_group_is_leased_first(pool):
  for n in range(3):
    issue(pool, f"g{n}")
  for _ in range(6):
    pool.start("agent", 10)
  for uid in ("g2-0", "g2-1", "g1-1", "g0-0", "g1-0"):
    pool.finish(trajectory(uid), "agent")
  assert [t.uid for t in pool.lease("a", 10)] == ["g1-0", "g1-1"]
  # The same owner gets the same again, as after a kill.
  assert [t.uid for t in pool.lease("a", 10)] == ["g1-0", "g1-1"]
  assert [t.uid for t in pool.lease("b", 10, groups=5)] == ["g2-0", "g2-1"]


def test_leases_end_and_what_they_were_for_is_given_out_again(pool, clock):
  issue(pool, "g", 1)
  assert pool.start("agent", 10).attempt == 1
  clock.now = 9
  pool.renew("g-0", "agent", 10)
  clock.now = 18
  assert pool.start("other", 10) is None
  clock.now = 20
  assert pool.start("other", 10).attempt == 2
  for call in (lambda: pool.renew("g-0", "agent", 10),
               lambda: pool.finish(trajectory("g-0"), "agent"),
               lambda: pool.fail("g-0", "agent", "x")):  # fmt: skip
    with pytest.raises(pool_lib.Lost):
      call()
  pool.finish(trajectory("g-0"), "other")
  assert pool.lease("learner", 10)
  clock.now = 31
  assert [t.uid for t in pool.lease("second", 10)] == ["g-0"]
  with pytest.raises(pool_lib.Lost, match="learner has no lease"):
    pool.consume("learner")
  assert pool.consume("second") == 1


def test_an_episode_whose_leases_end_again_and_again_has_failed(pool, clock):
  issue(pool, "g", 2)
  pool.start("steady", 99, uid="g-1")
  pool.finish(trajectory("g-1"), "steady")
  for attempt in (1, 2, 3):
    assert pool.start("agent", 1).attempt == attempt
    clock.now += 2
  pool.expire()
  assert states(pool) == {"g-0": "failed", "g-1": "ready"}
  assert pool_entries.counts(pool)["failed/LeaseEnded"] == 1


def test_a_full_pool_takes_no_group_and_drops_none(pool):
  for n in range(3):
    issue(pool, f"g{n}")
  with pytest.raises(pool_lib.Full, match="6 episodes of at most 6"):
    issue(pool, "g3")
  for _ in range(2):
    ticket = pool.start("agent", 10)
    pool.fail(ticket.uid, "agent", "Broken")
  assert issue(pool, "g3")
  assert len(states(pool)) == 8


def test_channels_and_tasks_are_kept_apart(pool):
  issue(pool, "v", 1, channel="validation", task=task(1))
  issue(pool, "t", 1)
  assert pool.start("a", 10, channel="train").uid == "t-0"
  assert pool.start("a", 10, task_uid="task1").uid == "v-0"
  pool.finish(trajectory("v-0", task(1), version=6), "a")
  pool.finish(trajectory("t-0"), "a")
  uids = lambda **asked: [e.uid for e in pool_entries.entries(pool, **asked)]
  assert uids(channel="validation") == uids(task="task1") == ["v-0"]
  assert uids(version=6) == ["v-0"]
  assert uids(state="ready") == ["v-0", "t-0"]
  pool_entries.label(pool, ["t-0"], {"good": "yes"})
  assert uids(label=("good", "yes")) == ["t-0"]
  assert [t.uid for t in pool.lease("l", 1, channel="validation")] == ["v-0"]
  with pytest.raises(ValueError, match="is leased already"):
    pool_entries.exclude(pool, ["t-0", "v-0"])
  assert states(pool)["t-0"] == "ready"
  pool_entries.exclude(pool, ["t-0"])
  assert pool.lease("m", 1) == []
  assert pool_entries.counts(pool)["failed/excluded"] == 1


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda p: issue(p, "g", 0), "has no episodes"),
    (lambda p: issue(p, "g", channel="x"), "channel='x' is none of train"),
    (lambda p: p.issue("g", task(), [("a", (), 0)] * 2), "an episode a"),
    (lambda p: pool_entries.label(p, ["x"], {}), "no episode x"),
    (lambda p: pool_entries.exclude(p, ["x"]), "no episode x"),
    (lambda p: pool_lib.Pool(p.file.path, capacity=0), "capacity=0"),
  ],
)
def test_what_a_pool_does_not_take_is_told(pool, call, message):
  with pytest.raises(ValueError, match=message):
    call(pool)
  assert states(pool) == {}


def test_a_file_that_is_no_pool_is_refused(tmp_path):
  file = tmp_path / "x"
  file.write_bytes(b"no database" * 100)
  with pytest.raises(RuntimeError, match="cannot be read"):
    pool_lib.Pool(file)
  pool_lib.Pool(tmp_path / "p").close()
  import sqlite3

  with sqlite3.connect(tmp_path / "p") as other:
    other.execute("PRAGMA user_version=9")
  other.close()
  with pytest.raises(ValueError, match="version 1 of pools but of 9"):
    pool_lib.Pool(tmp_path / "p")


# What a process of each kind does until it is killed.
PLAY = """
import os, sys, time
sys.path[:0] = sys.argv[3:]
import test_pool as t
pool = t.pool_lib.Pool(sys.argv[1], attempts=10**6)
owner = f"agent-{os.getpid()}"
out = open(sys.argv[2], "a", buffering=1)
while True:
  ticket = pool.start(owner, 1.0)
  if ticket is None:
    time.sleep(0.005)
    continue
  if ticket.uid.endswith("3"):
    pool.fail(ticket.uid, owner, "Broken")
    continue
  pool.finish(t.trajectory(ticket.uid, ticket.task), owner)
  # Acknowledged: nothing may lose it now.
  out.write(ticket.uid + "\\n")
"""
LEARN = """
import json, os, sys, time
sys.path[:0] = sys.argv[3:]
import test_pool as t
pool = t.pool_lib.Pool(sys.argv[1], attempts=10**6)
path = sys.argv[2]
saved = json.load(open(path)) if os.path.exists(path) else []
# What a checkpoint holds was learnt, whether or not that was still told.
if saved:
  pool.consume(f"update-{len(saved) - 1}")
while True:
  owner = f"update-{len(saved)}"
  found = pool.lease(owner, 3600, groups=2)
  if not found:
    time.sleep(0.005)
    continue
  saved.append([one.uid for one in found])
  with open(path + ".new", "w") as file:
    json.dump(saved, file)
  os.replace(path + ".new", path)
  pool.consume(owner)
"""


def killed_again_and_again(folder, kills, groups, seed):
  """Players and a learner that are killed at random; what became of it all."""
  rng = random.Random(seed)
  file, acked, saved = (str(folder / x) for x in ("pool", "acked", "saved"))
  folders = [str(pathlib.Path(__file__).parent)]
  pool = pool_lib.Pool(file, attempts=10**6)
  for n in range(groups):
    issue(pool, f"{n}", 4, task=task(n))
  variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  begin = lambda code, own: subprocess.Popen(
    [sys.executable, "-c", code, file, own, *folders], env=variables
  )
  kinds = [(PLAY, acked), (PLAY, acked), (LEARN, saved)]
  processes = [begin(*kind) for kind in kinds]
  done = lambda: not any(
    n for name, n in pool_entries.counts(pool).items()
    if name.partition("/")[0] not in ("consumed", "failed")
  )  # fmt: skip
  try:
    deadline = time.monotonic() + 240
    while kills or not done():
      assert time.monotonic() < deadline
      time.sleep(rng.uniform(0.0, 0.15))
      if kills and pathlib.Path(acked).exists():
        which = rng.randrange(len(kinds))
        processes[which].send_signal(signal.SIGKILL)
        processes[which].wait()
        processes[which] = begin(*kinds[which])
        kills -= 1
        if done():
          groups += 4
          for n in range(groups - 4, groups):
            issue(pool, f"{n}", 4, task=task(n))
  finally:
    for process in processes:
      process.kill()
      process.wait()
  counts = pool_entries.counts(pool)
  pool.close()
  updates = json.loads(pathlib.Path(saved).read_text())
  learnt = collections.Counter(uid for uids in updates for uid in uids)
  return groups * 4, counts, pathlib.Path(acked).read_text().split(), learnt


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_kills_of_any_side_lose_nothing_and_double_nothing(tmp_path, kills):
  issued, counts, acked, learnt = killed_again_and_again(
    tmp_path, kills, groups=20, seed=kills
  )
  assert issued == counts["consumed"] + counts["failed"]
  assert counts["failed"] == counts["failed/Broken"] == issued // 4
  assert set(learnt.values()) == {1}
  assert len(learnt) == counts["consumed"]
  assert set(acked) <= set(learnt)


@pytest.mark.parametrize("room", range(0, 60_000, 12_000))
def test_a_full_disk_is_said_and_takes_nothing_that_was_acknowledged(
  tmp_path, room
):
  """The log beside the file is what grows, and then the file."""
  path, acked, refused = tmp_path / "pool", [], []
  pool = pool_lib.Pool(path)
  for n in range(6):
    issue(pool, f"g{n}", size=1)
  largest = max(p.stat().st_size for p in tmp_path.glob("pool*"))
  with full_disks.full_after(largest + room):
    for n in range(6):
      try:
        uid = pool.start("agent", 60.0).uid
        one = dataclasses.replace(
          trajectory(uid), error=None, scores={"x" * 9000: float(n)}
        )
        pool.finish(one, "agent")
        acked.append(uid)
      except RuntimeError as error:
        refused.append(str(error))
  pool.close()
  assert refused
  assert all("cannot be read or written" in said for said in refused)
  with pool_lib.Pool(path) as pool:
    found = pool.lease("learner", 60.0, groups=9)
    assert [one.uid for one in found] == acked
    counts = pool_entries.counts(pool)
    assert counts["issued"] + counts["running"] == 6 - len(acked)
    pool.reclaim()
    while (ticket := pool.start("agent", 60.0)) is not None:
      pool.finish(trajectory(ticket.uid), "agent")
    states = {e.uid: e.state for e in pool_entries.entries(pool)}
  assert states == {f"g{n}-0": "leased" if f"g{n}-0" in acked else "ready"
                    for n in range(6)}  # fmt: skip
