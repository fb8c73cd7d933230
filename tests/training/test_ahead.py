"""Rollouts that go on while the learner works: nothing is stale or lost."""

import collections
import contextlib
import dataclasses
import gc
import json
import random
import threading
import time
from concurrent import futures

import ahead_runs
import jax
import numpy as np
import pytest
import small_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from steppo_jax import types
from steppo_jax.models.options import MeshConfig
from steppo_jax.processes import exchange, hosts, waits
from steppo_jax.rollout import journal, loop
from steppo_jax.storage import metrics
from steppo_jax.training import config, players


@settings(max_examples=12)
@given(
  seed=st.integers(0, 10**6),
  bound=st.integers(1, 4),
  slots=st.integers(1, 9),
  threads=st.sampled_from([0, 3]),
  retries=st.integers(0, 1),
  speed=st.sampled_from([0.1, 0.6, 1.0]),
  learner_s=st.sampled_from([0.0, 0.002, 0.01]),
)
def test_every_episode_is_trained_once_and_none_is_staler_than_the_bound(
  seed, bound, slots, threads, retries, speed, learner_s, tmp_path_factory
):
  told, noted, rng = [], [], random.Random(seed)
  made, engine, episodes = ahead_runs.make(
    tmp_path_factory.mktemp("any"), seed, slots=slots, told=told,
    staleness=bound, env_threads=threads, retries=retries, speed=speed,
    note=lambda event, **fields: noted.append((event, fields)),
  )  # fmt: skip
  done, discarded = collections.deque(), []

  def pause():
    discarded.append(made.discarded)
    time.sleep(rng.choice((0, learner_s)))

  with contextlib.closing(made):
    found = ahead_runs.learn(made, episodes, pause=pause)
  assert discarded == [0] * ahead_runs.UPDATES
  # Weights may be overtaken by newer ones; none is published after those.
  versions = [fields["version"] for event, fields in noted]
  assert versions == sorted(set(versions))
  assert all(e == "published" and f["took"] >= 0 for e, f in noted)
  for update, trajectories in found.items():
    assert [t.uid for t in trajectories] == [e.uid for e in episodes(update)]
    for one, episode in zip(trajectories, episodes(update), strict=True):
      assert (one.error is not None) == bool(episode.task.payload["fails"])
      assert len(one.retried) == retries * (one.error is not None)
      if one.error is None:
        assert len(one.steps) == episode.task.payload["steps"]
      versions = [step.policy_version for step in one.steps]
      assert versions == sorted(versions)
      done += [update - version for version in versions]
  assert all(0 <= behind <= bound for behind in done)
  assert sorted(t.uid for t in told) == sorted(
    e.uid for update in range(ahead_runs.UPDATES) for e in episodes(update)
  )
  # Whoever was begun was trained or has failed: none was thrown away.
  assert {uid for uid, _ in engine.begun} <= {t.uid for t in told}
  assert not made.queued()
  # Nobody begins before the bound admits it.
  for uid, version in engine.begun:
    assert int(uid.split("-")[0]) - bound <= version


class Joined(hosts.Hosts):
  """One of two processes, here threads, with the real exchange between them."""

  count = 2

  def __init__(self, port, index):
    self.index = index
    self._client = exchange.Client("127.0.0.1", port, index, limit_s=60.0)
    self.gather, self.close = self._client.gather, self._client.close


def test_each_process_paces_its_share_and_all_get_one_batch(tmp_path):
  """One of them is slow: the other waits for it, and runs no further ahead."""
  server = exchange.Server("127.0.0.1", 0, 2)
  with contextlib.ExitStack() as stack:
    stack.callback(server.close, patience_s=1.0)
    of = [Joined(server.port, index) for index in range(2)]
    made = [
      ahead_runs.make(tmp_path, 7, of=one, speed=speed, staleness=2)
      for one, speed in zip(of, (0.02, 1.0), strict=True)
    ]
    for one, (playing, *_) in zip(of, made, strict=True):
      stack.callback(one.close)
      stack.callback(playing.close)
    with futures.ThreadPoolExecutor(2) as threads:
      running = [
        threads.submit(ahead_runs.learn, playing, episodes)
        for playing, _, episodes in made
      ]
      batches = [future.result(120) for future in running]
  for update in range(ahead_runs.UPDATES):
    uids = [e.uid for e in made[0][2](update)]
    for batch in batches:
      assert [t.uid for t in batch[update]] == uids
    for one, other in zip(*(b[update] for b in batches), strict=True):
      assert journal.same(one, other)
  for index, (_, engine, _) in enumerate(made):
    assert {int(uid.split("-")[1]) for uid, _ in engine.begun} == {index}
    for uid, version in engine.begun:
      assert 0 <= int(uid.split("-")[0]) - version <= 2


def test_rollouts_go_on_while_the_learner_works(tmp_path):
  made, engine, episodes = ahead_runs.make(tmp_path, 1, staleness=2)
  with contextlib.closing(made):
    made.set_policy(0, 0)
    made.play(0, episodes(0))
    until = time.monotonic() + 20
    # The learner is at update 0 all the time.
    while made.finished_updates() < 2 and time.monotonic() < until:
      time.sleep(0.01)
    assert made.finished_updates() == 2
    begun = len(engine.begun)
    time.sleep(0.1)
    # A learner that stops is not run away from.
    assert len(engine.begun) == begun


@pytest.mark.parametrize("bound", [1, 3])
def test_what_was_finished_before_the_end_is_trained_on_as_it_was(
  tmp_path, bound
):
  made, _, episodes = ahead_runs.make(tmp_path, 2, staleness=bound)
  with contextlib.closing(made):
    before = ahead_runs.learn(made, episodes, last=3)
  held = {}
  for path in (tmp_path / "journal").iterdir():
    held |= journal.read(path).trajectories
  # As if the weights of update 1 were the last that had been saved.
  again, engine, _ = ahead_runs.make(tmp_path, 2, staleness=bound)
  with contextlib.closing(again):
    after = ahead_runs.learn(again, episodes, first=1)
  for update in (1, 2):
    for one, other in zip(before[update], after[update], strict=True):
      assert journal.same(one, other)
  later = {t.uid: t for update in (3, 4) for t in after[update]}
  for uid, kept in held.items():
    if uid in later:
      assert journal.same(kept, later[uid])
  assert not {uid for uid, _ in engine.begun} & set(held)


def test_what_breaks_the_rollouts_is_told_to_the_learner(tmp_path):
  made, _, episodes = ahead_runs.make(tmp_path, 3, staleness=1)
  made.set_policy(0, 0)
  with contextlib.closing(made):
    made.play(0, episodes(0))
    full = tmp_path / "journal"
    for path in full.iterdir():
      path.unlink()
    full.rmdir()
    full.write_text("no folder")
    made.set_policy(1, 1)
    with pytest.raises(RuntimeError, match="cannot write the journal"):
      ahead_runs.learn_on(made, episodes)


def test_who_waits_for_whom_is_said_down_to_the_episode(tmp_path, monkeypatch):
  """The learner waits for rollouts, and they for environments that hang."""
  go, notes = threading.Event(), []
  # At the second time both have waited too long, whichever began first.
  note = lambda *told, **fields: (
    notes.append((*told, fields)), len(notes) > 1 and go.set()
  )  # fmt: skip
  step = ahead_runs.Env.step
  monkeypatch.setattr(
    ahead_runs.Env, "step", lambda *args: go.wait(120) and step(*args)
  )
  made, _, episodes = ahead_runs.make(
    tmp_path, 4, staleness=1, env_threads=8, slots=8
  )
  made.set_policy(0, 0)
  with waits.Watch(0.5, note), contextlib.closing(made):
    made.play(0, episodes(0))
  event, fields = notes[1]
  assert event == "waiting"
  told = {(w["who"], w["whom"]): w["what"] for w in fields["waits"]}
  assert "of update 0" in told["learner", "rollouts"]
  named = told["rollouts", "environments"]
  hang = {whom for who, whom in told if who == "environments"}
  assert any(one.removeprefix("episode ") in named for one in hang)
  assert {"learner", "rollouts"} <= {
    fields.get("who") for event, fields in notes if event == "went_on"
  }


@pytest.mark.parametrize("stops", ["learner", "environments"])
def test_who_stops_is_not_run_away_from(tmp_path, monkeypatch, stops):
  """Neither episodes, nor steps, nor open journals pile up meanwhile."""
  go = threading.Event()
  made, engine, episodes = ahead_runs.make(
    tmp_path, 5, staleness=2, env_threads=4, slots=4
  )
  made.set_policy(0, 0)
  made.play(0, episodes(0)) if stops == "learner" else None
  if stops == "environments":
    monkeypatch.setattr(
      ahead_runs.Env, "step", lambda *_: go.wait(120) and 1 / 0
    )
    player = threading.Thread(target=made.play, args=(0, episodes(0)))
    player.start()

  def held():
    gc.collect()
    alive = [type(x) for x in gc.get_objects()]
    kinds = (types.Trajectory, types.Step, journal.Journal, loop.Episode)
    return [alive.count(kind) for kind in kinds], len(engine.begun)

  until = time.monotonic() + 60
  # All that may be done is done: of the learner both further updates, of the
  # environments a step in each of the slots.
  done = lambda: (
    made.finished_updates() == 2
    if stops == "learner"
    else len(engine.begun) == engine.num_slots
  )
  while not done() and time.monotonic() < until:
    time.sleep(0.02)
  assert done()
  now = held()
  time.sleep(0.2)
  assert held() == now
  # Updates 1 and 2 are admitted while the learner is at 0, of 4 episodes each.
  assert len({uid for uid, _ in engine.begun}) <= 12
  assert made.queued() <= 12
  go.set()
  if stops == "environments":
    player.join()
  made.close()


def test_what_is_answered_after_the_close_ends_no_episode(tmp_path):
  """As when workers are killed that held the rollouts."""
  go = threading.Event()
  made, engine, episodes = ahead_runs.make(
    tmp_path, 6, staleness=1, env_threads=3, slots=3
  )
  with pytest.MonkeyPatch.context() as patched:
    for name in ("step", "reset"):
      patched.setattr(ahead_runs.Env, name, lambda *_: go.wait(120) and 1 / 0)
    made.set_policy(0, 0)

    def play():
      with contextlib.suppress(RuntimeError):
        made.play(0, episodes(0))

    learner = threading.Thread(target=play)
    learner.start()
    rests = lambda: any(w.whom == waits.ENVIRONMENTS for w in waits.current())
    until = time.monotonic() + 60
    while not rests() and time.monotonic() < until:
      time.sleep(0.01)
    closing = threading.Thread(target=made.close)
    closing.start()
    while not made._closed:
      time.sleep(0.01)
    go.set()
    closing.join(60)
  assert not closing.is_alive()
  made._failed = RuntimeError("ends the learner's wait")
  learner.join(60)
  assert not engine.begun
  for path in (tmp_path / "journal").iterdir():
    assert not journal.read(path).trajectories


def test_no_news_is_lost_between_two_questions(tmp_path):
  """Weights that come once `take` gave nothing, wherever the thread is then."""
  made, _, _ = ahead_runs.make(tmp_path, 8, staleness=1)
  take = lambda: len(list(iter(made.take, None)))
  made.set_policy(0, 0)
  made._thread = threading.Thread()  # Here is where it plays.
  assert take() == 8
  assert not made.news().done()
  made.set_policy(1, 1)
  assert made.news().done()
  # Taken before anybody has heard of them.
  made.change()
  assert made.news().done()
  assert take() == 4
  assert not made.news().done()
  # They come between an episode and none.
  made.take()
  made.set_policy(2, 2)
  assert take() == 4
  assert made.news().done()
  made.change()
  assert made.news().done()
  # Whoever has no room for an episode does not ask again, and rests.
  assert not made.news().done()
  for batch in made._batches.values():
    batch.journal.close()


def test_full_slots_rest_until_something_happens(tmp_path, monkeypatch):
  """Weights that came while all play are taken once, and no loop spins."""
  go, asked = threading.Event(), []
  made, engine, episodes = ahead_runs.make(
    tmp_path, 7, staleness=1, env_threads=2, slots=2
  )
  polled = engine.poll
  monkeypatch.setattr(engine, "poll", lambda: asked.append(0) or polled())
  made.set_policy(0, 0)
  made.play(0, episodes(0))
  step = ahead_runs.Env.step
  monkeypatch.setattr(
    ahead_runs.Env, "step", lambda *args: go.wait(120) and step(*args)
  )
  with contextlib.closing(made):
    made.set_policy(1, 1)
    until = time.monotonic() + 60
    while engine.version != 1 and time.monotonic() < until:
      time.sleep(0.01)
    assert engine.version == 1
    time.sleep(0.1)
    before = len(asked)
    time.sleep(0.3)
    assert len(asked) - before < 5
    go.set()
    made.play(1, episodes(1))


@pytest.mark.slow
def test_a_run_learns_from_what_older_weights_sampled(tmp_path):
  small = small_runs.small_config(tmp_path, keep_journals=9)
  rollout = dataclasses.replace(small.rollout, staleness=1)
  small = dataclasses.replace(small, rollout=rollout)
  small_runs.run(small, stop_after=1)
  folder = small_runs.run(small)
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  assert [line["update"] for line in lines] == [0, 1, 2, 3]
  for line in lines[1:]:
    assert 0 <= line["rollout/staleness"] <= 1
    shares = [v for k, v in line.items() if "staleness_share" in k]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-6)
    assert line["rollout/episodes"] == 6
    assert line["policy/grad_norm"] > 0
    assert line["rollout/discarded"] == 0
    assert line["wait/learner_for_rollouts_s"] > 0
    assert line["wait/rollouts_for_sampler_s"] >= 0
    took = line["time/rollout_s"] + line["time/learn_s"]
    assert line["rollout/episodes_per_s"] == pytest.approx(6 / took)
  # Under way before the first update was learned.
  assert lines[2]["rollout/staleness"] > 0
  trained = [
    t.steps[0].policy_version
    for update in range(3)
    for t in journal.read(
      journal.path_of(folder / "journal", update, 0)
    ).trajectories.values()
  ]
  assert len(trained) == 18
  lines = (folder / "events.jsonl").read_text().splitlines()
  published = [
    one for one in map(json.loads, lines) if one.get("event") == "published"
  ]
  assert published
  assert all(one["took"] >= 0 for one in published)


@pytest.mark.parametrize(
  "assignment", ["rollout.source=service", "dynamic_sampling.max_rounds=2"]
)
def test_ways_of_playing_that_do_not_go_together_are_refused(
  tmp_path, assignment
):
  chosen = ahead_runs.options(tmp_path, staleness=1)
  chosen = config.override(
    chosen,
    [assignment, "algorithm.name=grpo", "packing.row_length=400"],
    command="train",
  )
  with pytest.raises(ValueError, match=f"rollout.staleness=1 and {assignment}"):
    chosen.check_training()


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_rollouts_have_devices_of_their_own(tmp_path, staleness, monkeypatch):
  """In turns the run ends with the bits of one on the learner's devices."""
  made, engines = players.engine_lib.SlotEngine, []

  def noted(*args, **kwargs):
    engines.append((made(*args, **kwargs), kwargs["devices"]))
    return engines[-1][0]

  monkeypatch.setattr(players.engine_lib, "SlotEngine", noted)
  options = small_runs.small_config(tmp_path / "own")
  options = dataclasses.replace(
    options,
    mesh=MeshConfig(rollout_devices=3),
    rollout=dataclasses.replace(options.rollout, staleness=staleness),
  )
  folder = small_runs.run(options)
  for engine, devices in engines:
    assert devices == jax.devices()[5:]
    held = jax.tree.leaves((engine._device.params, engine._device._cache))
    assert {d for x in held for d in x.devices()} == {jax.devices()[5]}
  if staleness == 0:
    there = small_runs.run(small_runs.small_config(tmp_path / "shared"))
    assert small_runs.bits(folder) == small_runs.bits(there)
  else:
    lines = metrics.read_jsonl(folder / "metrics.jsonl")
    assert lines[-1]["rollout/staleness"] > 0
