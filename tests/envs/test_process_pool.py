"""The pool of workers: who has one, when it is replaced, what is left."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pools
import pytest
from marks import some
from pools import TASK, gone, pool

from steppo_jax import types
from steppo_jax.envs import base

pytestmark = pytest.mark.usefixtures("no_process_is_left")


def limits(**changes):
  return dataclasses.replace(pools.QUICK, **changes)


@pytest.mark.parametrize(
  ("at_start", "error", "message"),
  some(
    ("die", base.EnvDied, "status 3 in start"),
    slow=[
      ("raise", base.EnvRaised, "cannot be made"),
      ("hang", base.EnvTimeout, "no answer to start within 0.4 s"),
    ],
  ),
)
def test_a_worker_that_cannot_start_is_tried_again_and_given_up(
  at_start, error, message
):
  # Only what hangs is to run into the limit: a busy machine starts slowly.
  few = limits(start_s=0.4 if at_start == "hang" else 20, start_attempts=3,
               backoff_max_s=60, backoff_s=0.05)  # fmt: skip
  with pool(limits=few, at_start=at_start) as workers:
    with pytest.raises(error, match=message):
      workers().reset(TASK, 0)
    assert workers.started == 3
    # Those that come at once do not wait for the same again.
    with pytest.raises(error, match=message):
      workers().reset(TASK, 0)
    assert workers.started == 3


@pytest.mark.slow
def test_the_pause_before_a_new_start_doubles():
  with pool(limits=limits(backoff_s=0.1, start_attempts=4, backoff_max_s=9),
            at_start="raise") as workers:  # fmt: skip
    start = time.monotonic()
    with pytest.raises(base.EnvRaised):
      workers().reset(TASK, 0)
    # 0.1 + 0.2 + 0.4 seconds lie between four attempts.
    assert time.monotonic() - start >= 0.7


def test_a_reset_that_kills_counts_as_a_start_that_failed():
  with pool() as workers:
    env = workers()
    for _ in range(2):
      with pytest.raises(base.EnvDied, match="in reset"):
        env.reset(types.Task("d", "echo", "", {"do": "die 1"}), 0)
    assert workers._failures_in_a_row == 2
    env.reset(TASK, 0)
    assert workers._failures_in_a_row == 0
    env.close()


def test_a_worker_belongs_to_one_episode_at_a_time():
  with pool(2) as workers:
    a, b, c = workers(), workers(), workers()
    a.reset(TASK, 0)
    b.reset(TASK, 0)
    pids = [a.step("x").info["pid"], b.step("x").info["pid"]]
    assert len(set(pids)) == 2
    got = []

    def play():
      c.reset(TASK, 0)
      got.append(c.step("x").info["pid"])

    thread = threading.Thread(target=play)
    thread.start()
    time.sleep(0.2)
    assert not got  # Both are taken.
    b.close()
    thread.join(20)
    assert got == [pids[1]]
    assert workers.started == 2
    a.close()
    c.close()


@pytest.mark.slow
def test_a_lease_that_is_kept_too_long_is_taken_away():
  with pool(limits=limits(lease_s=1)) as workers:
    keeper, waits = workers(), workers()
    keeper.reset(TASK, 0)
    pid = keeper.step("x").info["pid"]
    waits.reset(TASK, 1)  # Waits until the lease has ended.
    assert gone(pid)
    with pytest.raises(base.EnvLeaseLost):
      keeper.step("x")
    assert waits.step("x").observation == "x"
    assert workers.failed == {"EnvLeaseLost": 1}
    keeper.close()
    waits.close()


def test_a_worker_that_died_between_episodes_costs_none():
  with pool() as workers:
    env = workers()
    env.reset(TASK, 0)
    pid = env.step("x").info["pid"]
    env.close()
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(w.alive for w in workers._all) and time.monotonic() < deadline:
      time.sleep(0.01)
    assert env.reset(TASK, 0).observation == "t 0"
    env.close()


def test_a_call_that_was_broken_off_leaves_no_stale_answer():
  with pool() as workers:
    env = workers()
    env.reset(TASK, 0)
    (worker,) = workers._all

    def interrupt(*_):
      raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
      signal.setitimer(signal.ITIMER_REAL, 0.3)
      with pytest.raises(KeyboardInterrupt):
        env.step("hang")
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.signal(signal.SIGALRM, before)
    env.close()
    assert not worker.alive
    env.reset(TASK, 0)
    assert env.step("fresh").observation == "fresh"
    env.close()


@pytest.mark.slow
def test_closing_ends_workers_that_cling_and_what_they_started():
  with pool(2, limits=limits(close_s=0.3)) as workers:
    a, b = workers(), workers()
    a.reset(TASK, 0)
    b.reset(TASK, 0)
    pids = [a.step("x").info["pid"], int(a.step("child").observation)]
    a.step("cling")
    a.close()
    assert not gone(pids[1], within=0.1)
  assert all(gone(pid) for pid in pids)
  # An environment that outlives its pool is told so.
  with pytest.raises(base.EnvDied):
    b.step("x")
  with pytest.raises(base.EnvDied, match="have been closed"):
    workers().reset(TASK, 0)


def test_a_pool_that_is_forgotten_takes_its_workers_along():
  workers = pool()
  env = workers()
  env.reset(TASK, 0)
  pid = env.step("x").info["pid"]
  del env, workers
  assert gone(pid)


PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.workers import options, pool as process
workers = process.Workers(
  base.Recipe("unruly:Echo", {{}}), 2, options.WorkerLimits())
task = types.Task("t", "echo", "echo", {{}})
a, b = workers(), workers()
a.reset(task, 0)
b.reset(task, 0)
print(a.step("x").info["pid"], b.step("child").observation,
      b.step("x").info["pid"], flush=True)
{end}
"""


@pytest.mark.parametrize(
  ("end", "kill"),
  some(
    ("b.step('hold')", True),
    ("raise ValueError('the trainer fails')", False),
    slow=[
      ("b.step('hang')", True),
      ("time.sleep(3600)", True),
      ("sys.exit(0)", False),
    ],
  ),
)
def test_no_worker_outlives_its_parent(end, kill):
  folder = str(pathlib.Path(pools.__file__).parent)
  parent = subprocess.Popen(
    [sys.executable, "-c", PARENT.format(folder=folder, end=end)],
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
  )  # fmt: skip
  pids = [int(pid) for pid in parent.stdout.readline().split()]
  assert len(pids) == 3
  if kill:
    time.sleep(0.3)
    parent.send_signal(signal.SIGKILL)
  parent.communicate(timeout=30)
  assert all(pools.orphan_ended(pid) for pid in pids)
