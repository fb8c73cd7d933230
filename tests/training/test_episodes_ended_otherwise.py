"""Episodes that somebody excludes, ends or stops while agents play them."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import threading
import time
from concurrent import futures

import agent_runs
import agents_ahead
import plain_agent
import pytest

from steppo_jax.rollout import pool_entries

# An agent whose episode goes on until there is a file of its name, unless it is
# the first of its group, and which notes what it was told at its end.
AGENT = f"""
import os, pathlib, sys, time

sys.path.insert(0, {str(pathlib.Path(plain_agent.__file__).parent)!r})
import plain_agent

folder, session = pathlib.Path(sys.argv[1]), os.environ["STEPPO_SESSION"]
uid = session.rpartition("/")[2]
body = {{"model": "any", "messages": [{{"role": "user", "content": "go"}}]}}
plain_agent.post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
while not uid.endswith("-0") and not (folder / f"go-{{uid}}").exists():
  time.sleep(0.02)
if "quietly" not in sys.argv:
  body = {{"status": "terminated", "reward": 1.0}}
  plain_agent.post(session + "/finish", body)
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)


def command(folder, *more):
  (folder / "agent.py").write_text(AGENT)
  return " ".join(
    [sys.executable, str(folder / "agent.py"), str(folder), *more]
  )


def until(true):
  """Waits for what has to become true."""
  end = time.monotonic() + 20
  while not true():
    assert time.monotonic() < end
    time.sleep(0.02)


def states(players):
  return {e.uid: e.state for e in pool_entries.entries(players._pool)}


@contextlib.contextmanager
def played(players, episodes):
  """Episodes that another thread has played; a list that they come to."""
  found = []
  with futures.ThreadPoolExecutor(1) as threads:
    future = threads.submit(players.play, episodes)
    yield found
    found += future.result(60)


def test_what_is_excluded_while_its_group_is_played_is_not_trained(tmp_path):
  """One whose record is there, and one that is still being played."""
  episodes = agents_ahead.episodes(0)
  with agents_ahead.playing(
    tmp_path, plays=command(tmp_path)
  ) as (_, players, engine):  # fmt: skip
    engine.set_params(0, 0)
    with played(players, episodes) as found:
      until(
        lambda: list(states(players).values()) == ["finished", "running"] * 2
      )
      pool_entries.exclude(players._pool, ["0-0-0", "0-1-1"])
      for uid in ("0-0-1", "0-1-1"):
        (tmp_path / f"go-{uid}").touch()
    counted = pool_entries.counts(players._pool)
  assert [t.error and t.error.partition(":")[0] for t in found] == [
    "excluded", None, None, "excluded",
  ]  # fmt: skip
  assert [t.success for t in found] == [False, True, True, False]
  assert [t.uid for t in found] == [one.uid for one in episodes]
  assert counted["failed/excluded"] == 2
  assert counted["leased"] == 2


@pytest.mark.parametrize("quietly", [(), ("quietly",)])
def test_an_agent_whose_episode_is_excluded_ends_no_run(tmp_path, quietly):
  """Whether it learns of that by its own end, or leaves that to the run."""
  with agents_ahead.playing(
    tmp_path, plays=command(tmp_path, *quietly)
  ) as (_, players, engine):  # fmt: skip
    engine.set_params(0, 0)
    with played(players, agents_ahead.episodes(0)[:2]) as found:
      until(
        lambda: states(players) == {"0-0-0": "finished", "0-0-1": "running"}
      )
      pool_entries.exclude(players._pool, ["0-0-1"])
      (tmp_path / "go-0-0-1").touch()
  assert [t.error and t.error.partition(":")[0] for t in found] == [
    None, "excluded",
  ]  # fmt: skip


def test_an_episode_whose_lease_has_ended_is_played_again(
  tmp_path, monkeypatch
):
  """As after a night in which the machine slept."""
  with agents_ahead.playing(
    tmp_path, plays=command(tmp_path)
  ) as (_, players, engine):  # fmt: skip
    engine.set_params(0, 0)
    with played(players, agents_ahead.episodes(0)[1:2]) as found:
      until(lambda: states(players) == {"0-0-1": "running"})
      with monkeypatch.context() as patch:
        patch.setattr(players._pool, "_clock", lambda: time.time() + 1e6)
        players._pool.expire()
      assert states(players) == {"0-0-1": "issued"}
      (tmp_path / "go-0-0-1").touch()
    (entry,) = pool_entries.entries(players._pool)
  assert [t.error for t in found] == [None]
  assert entry.attempts == 2


def test_what_is_excluded_before_its_update_is_not_trained(tmp_path):
  """Its journal holds it as it was; after a restart it is left out again."""
  for update in range(agents_ahead.UPDATES):
    for one in agents_ahead.episodes(update):
      (tmp_path / f"go-{one.uid}").touch()
  for first in (0, 1):
    with agents_ahead.playing(
      tmp_path, plays=command(tmp_path)
    ) as (made, players, _):  # fmt: skip
      made.set_policy(first, first)
      if first == 0:
        made.play(0, agents_ahead.episodes(0))
        made.set_policy(1, 1)
        until(lambda: made.finished_updates() == 2)
        pool_entries.exclude(players._pool, ["1-0-1"])
        with pytest.raises(ValueError, match="0-0-0 is leased already"):
          pool_entries.exclude(players._pool, ["0-0-0"])
      found, _ = made.play(1, agents_ahead.episodes(1))
    assert [t.error for t in found] == [
      None, "excluded: after its end", None, None,
    ]  # fmt: skip


class Slow(agents_ahead.Engine):
  """Holds answers back, but the first, until it is told."""

  go = threading.Event()

  def poll(self):
    return [] if self.answered and not self.go.is_set() else super().poll()


def test_an_agent_that_is_killed_while_its_own_end_waits_ends_no_run(tmp_path):
  """The end that it sent is the one that counts."""
  ends = AGENT.split("while not")[0] + (
    "import threading\n"
    "url = os.environ['OPENAI_BASE_URL'] + '/chat/completions'\n"
    "body['messages'][0]['content'] = 'on'\n"
    "threading.Thread(target=plain_agent.post, args=(url, body)).start()\n"
    "time.sleep(0.5)\n"
    "end = {'status': 'terminated', 'reward': 1.0}\n"
    "plain_agent.post(session + '/finish', end)\n"
  )
  (tmp_path / "ends.py").write_text(ends)
  Slow.go.clear()
  with agents_ahead.playing(
    tmp_path, plays=f"{sys.executable} {tmp_path / 'ends.py'} {tmp_path}",
    engine=Slow,
  ) as (_, players, engine):  # fmt: skip
    engine.set_params(0, 0)
    config = players._agents._config
    players._agents._config = dataclasses.replace(config, seconds=1.5)
    with played(players, agents_ahead.episodes(0)[:1]) as found:
      until(lambda: players._agents._running)
      until(lambda: not players._agents._running)
      time.sleep(0.2)
      Slow.go.set()
  assert [t.error for t in found] == [None]
  assert [t.total_reward for t in found] == [1.0]


class Stopped(Exception):
  """What a signal raises."""


def _stopped(players, stop):
  """Two episodes are played, of which one has ended when a signal comes."""

  def soon():
    until(lambda: list(states(players).values()) == ["finished", "running"])
    os.kill(os.getpid(), signal.SIGUSR1)

  before = signal.signal(signal.SIGUSR1, stop)
  try:
    with futures.ThreadPoolExecutor(1) as threads:
      threads.submit(soon)
      with pytest.raises(Stopped):
        players.play(agents_ahead.episodes(0)[:2])
  finally:
    signal.signal(signal.SIGUSR1, before)


def stopped_by_a_signal(made, players):
  """In the thread that plays, as a run in turns is stopped."""

  def stop(*_):
    raise Stopped

  _stopped(players, stop)


def closed_while_it_plays(made, players):
  """As where rollouts do not end in time."""

  def play():
    with pytest.raises(RuntimeError, match=r"gateway|closed database"):
      players.play(agents_ahead.episodes(0)[:2])

  with futures.ThreadPoolExecutor(1) as threads:
    playing = threads.submit(play)
    until(lambda: list(states(players).values()) == ["finished", "running"])
    players.close()
    playing.result(60)


def closed_by_the_learner(made, players):
  """As rollouts that go on end with their run."""
  made.set_policy(0, 0)

  def learn():
    with pytest.raises(RuntimeError, match="ends the wait"):
      made.play(0, agents_ahead.episodes(0))

  with futures.ThreadPoolExecutor(1) as threads:
    learner = threads.submit(learn)
    until(lambda: list(states(players).values()).count("finished") >= 2)
    made.close()
    made._failed = RuntimeError("ends the wait")
    learner.result(60)


def stopped_with_its_agents(made, players):
  """As by whoever tells all processes of a job to stop."""

  def stop(*_):
    for agent in list(players._agents._running):
      agent.terminate()
    time.sleep(0.3)
    raise Stopped

  _stopped(players, stop)


STOPS = (
  stopped_by_a_signal, stopped_with_its_agents, closed_by_the_learner,
  closed_while_it_plays,
)  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_what_agents_play_while_a_run_is_stopped_is_played_again(
  tmp_path, stop
):
  """They are killed, which is no failure of theirs."""
  plays = command(tmp_path)
  with agents_ahead.playing(tmp_path, plays=plays) as (made, players, engine):
    engine.set_params(0, 0)
    stop(made, players)
  with agents_ahead.playing(tmp_path, plays=plays) as (_, players, engine):
    assert "failed" not in states(players).values()
    assert states(players)["0-0-1"] == "issued"
    engine.set_params(0, 0)
    (tmp_path / "go-0-0-1").touch()
    found = players.play(agents_ahead.episodes(0)[:2])
  assert [t.error for t in found] == [None, None]
  assert [t.success for t in found] == [True, True]
