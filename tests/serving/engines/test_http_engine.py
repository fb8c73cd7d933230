"""Runs that sample with servers: the same tokens, by the weights they sent."""

import contextlib
import dataclasses
import functools
import inspect
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_runs
import weight_servers
import worlds

from steppo_jax import types
from steppo_jax.envs.household import env as household
from steppo_jax.models import lora
from steppo_jax.models.options import LoraConfig
from steppo_jax.processes import hosts
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import loop
from steppo_jax.rollout.options import EngineConfig
from steppo_jax.serving.engines import connection
from steppo_jax.serving.engines import engine as http_engine
from steppo_jax.serving.engines import servers as servers_lib
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.training import remote, train

HOUSEHOLD = functools.partial(household.HouseholdEnv, invalid_penalty=0.1)


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("STEPPO_API_KEY", weight_servers.KEY)


def over_http(config, servers, **changes):
  """The options of a run that samples with servers."""
  return dataclasses.replace(
    config,
    rollout=dataclasses.replace(config.rollout, engine="http"),
    engines=EngineConfig(tuple(one.url for one in servers), **changes),
  )


@contextlib.contextmanager
def engine_of(tmp_path, servers, **changes):
  """The engine of a run that samples with servers."""
  config = over_http(small_runs.small_config(tmp_path), servers, **changes)
  made = remote.make(config, worlds.model(), worlds.tokenizer(), hosts.ALONE)
  with contextlib.closing(made):
    yield made


def play(engine, count=6):
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  episodes = worlds.episodes(count)
  return loop.run(engine, HOUSEHOLD, episodes, prompt, worlds.ROLLOUT)


def check_same(found, want):
  """Episodes of the same tokens, and log-probs but for what sums round."""
  assert [one.uid for one in found] == [one.uid for one in want]
  for one, other in zip(found, want, strict=True):
    assert len(one.steps) == len(other.steps)
    for ours, theirs in zip(one.steps, other.steps, strict=True):
      np.testing.assert_array_equal(ours.prompt_ids, theirs.prompt_ids)
      np.testing.assert_array_equal(ours.response_ids, theirs.response_ids)
      np.testing.assert_allclose(
        ours.behaviour_logp, theirs.behaviour_logp, rtol=1e-5, atol=1e-5
      )
      assert ours.policy_version == theirs.policy_version


def adapted():
  """A policy with adapters that change what it says."""
  made = lora.add(worlds.policy(), LoraConfig(rank=2), jax.random.key(1))
  draw = lambda path, x: (
    0.1 * jax.random.normal(jax.random.key(2), x.shape)
    if path[-1].key == "lora_b"
    else x
  )
  return jax.tree_util.tree_map_with_path(draw, made)


def test_servers_sample_what_the_engine_of_the_run_samples(tmp_path):
  own = worlds.engine()
  with (
    weight_servers.serving(2) as servers,
    engine_of(tmp_path, servers) as engine,
  ):
    assert engine.num_slots == 16
    for version, params in enumerate([worlds.policy(3), adapted()], 4):
      for one in (own, engine):
        one.set_params(params, version)
      assert engine.version == version
      check_same(play(engine), want := play(own))
      assert {s.policy_version for t in want for s in t.steps} == {version}
    # Whole once, then adapters: both servers have answered.
    assert all(s.policy.scheduler.counts["answered"] for s in servers)


def test_the_engine_is_all_that_the_protocol_promises():
  names = lambda method: list(inspect.signature(method).parameters)
  for name, promised in vars(types.Engine).items():
    if inspect.isfunction(promised) and not name.startswith("_"):
      assert names(getattr(http_engine.HttpEngine, name)) == names(promised)


def test_weights_that_did_not_change_are_one_file_to_the_end(tmp_path):
  """As while the critic warms up: the policy of two updates is the same."""
  with weight_servers.serving() as servers:
    with engine_of(tmp_path, servers) as engine:
      engine.set_params(worlds.policy(), 0)
      engine.prepare(worlds.policy())
    with engine_of(tmp_path, servers) as engine:
      engine.set_params(worlds.policy(), 0)
      engine.swap(engine.prepare(worlds.policy()), 1)
      assert engine.version == 1


class Stub:
  """A connection to a server that gets no byte, or one, of every sending."""

  address = "a server"

  def __init__(self, status, step, size):
    self.status, self.step, self.size, self.sent = status, step, size, 0

  def ask(self, method, path, body):
    offset = self.sent * self.step
    return {"ready": offset >= self.size, "offset": offset}

  def send(self, path, file, offset):
    self.sent += 1
    if self.status is None:
      raise ConnectionResetError("broken off")
    return self.status, "told"

  def close(self):
    pass


@pytest.mark.parametrize("status", [None, 404])
def test_sending_goes_on_as_long_as_bytes_arrive(tmp_path, status, monkeypatch):
  monkeypatch.setattr(servers_lib, "_BACK_OFF_S", 0)
  file = tmp_path / "file"
  file.write_bytes(b"x" * 40)
  package = servers_lib.Package(file, "ab")
  far = Stub(status, 1, 40)
  servers_lib.PolicyServer(far, {}).send(package)
  assert far.sent == 40
  # A server that has forgotten what was announced is told again, not for ever.
  stuck = Stub(status, 0, 40)
  with pytest.raises(connection.Lost, match="do not get there"):
    servers_lib.PolicyServer(stuck, {}).send(package)


def test_an_episode_stays_on_one_server(tmp_path):
  with (
    weight_servers.serving(2) as servers,
    engine_of(tmp_path, servers) as engine,
  ):
    engine.set_params(worlds.policy(), 0)
    play(engine)
    read = sum(s.engine.counters.prefill_tokens for s in servers)
    asked = sum(s.engine.counters.prompt_tokens for s in servers)
    # Every prompt extends the one before, which its server still holds.
    assert asked == engine.counters.prompt_tokens
    assert read < asked / 2


@pytest.mark.slow
def test_a_dead_server_costs_no_episode_and_all_dead_are_an_error(
  tmp_path, caplog
):
  want = play(worlds.engine())
  with contextlib.ExitStack() as stack:
    alive, dying = stack.enter_context(weight_servers.serving(2))
    engine = stack.enter_context(engine_of(tmp_path, [alive, dying]))
    engine.set_params(worlds.policy(), 0)
    asked, submit = [], engine.submit

    def until_it_dies(requests):
      asked.extend(requests)
      if len(asked) > 8:
        dying.stop.close()
      submit(requests)

    engine.submit = until_it_dies
    check_same(play(engine), want)
    assert f"{dying.url} does not answer" in caplog.text
    engine.submit = submit
    # One that is there again samples with the weights that are handed over.
    port = int(dying.url.rpartition(":")[2])
    again = weight_servers.serve(port=port)
    stack.enter_context(again.stop)
    own = worlds.engine()
    for one in (own, engine):
      one.set_params(worlds.policy(1), 1)
    check_same(play(engine), play(own))
    assert again.policy.scheduler.counts["answered"]
    for one in (again, alive):
      one.stop.close()
    with pytest.raises(RuntimeError, match="no server of engines"):
      play(engine)


def test_what_other_weights_sampled_is_an_error(tmp_path):
  with (
    weight_servers.serving() as servers,
    engine_of(tmp_path, servers) as engine,
    engine_of(tmp_path, servers) as another,
  ):
    engine.set_params(worlds.policy(), 2)
    play(engine, 1)
    # The same number of updates, of another run.
    another.set_params(worlds.policy(7), 2)
    with pytest.raises(servers_lib.WrongWeights, match="does another run use"):
      play(engine, 1)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"seed": 3}, "--seed 3 there, seed=0 here"),
    ({"tokenizer": "other"}, "another tokenizer"),
    ({"model": {"width": 7}}, "width=7 there, 32 here"),
    ({"context": 100}, "raise its --context"),
  ],
)
def test_a_server_that_does_not_fit_is_refused(tmp_path, more, message):
  with (
    weight_servers.serving(more=more) as servers,
    pytest.raises(ValueError, match=message),
    engine_of(tmp_path, servers),
  ):
    pass


def test_without_the_key_nothing_is_taken(tmp_path, monkeypatch):
  monkeypatch.setenv("STEPPO_API_KEY", "another")
  with (
    weight_servers.serving() as servers,
    pytest.raises(ValueError, match="serve policy --accept-weights"),
    engine_of(tmp_path, servers),
  ):
    pass


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("ftp://host:1", "must be http://HOST:PORT"),
    ("http://host:99999999", "Port out of range"),
    ("host", "must be http://HOST:PORT"),
  ],
)
def test_an_address_that_is_none_is_told(tmp_path, address, message):
  class At:
    url = address

  with (
    pytest.raises(ValueError, match=message),
    engine_of(tmp_path, [At]),
  ):
    pass


def played(config):
  """The training episodes of a run, and its metrics."""
  folder, found = run_folder.open_folder(config, "test", "test"), {}
  train.train(
    config, folder, on_update=lambda *_: None,
    on_episode=lambda one: found.update({one.uid: one}),
  )  # fmt: skip
  return [found[uid] for uid in sorted(found)], metrics.read_jsonl(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_over_http_is_the_run_with_its_own_engine(tmp_path, rank):
  small = small_runs.small_config(tmp_path, num_updates=2)
  learner = dataclasses.replace(small.learner, lora=LoraConfig(rank=rank))
  small = dataclasses.replace(small, learner=learner)
  want, _ = played(dataclasses.replace(small, run_dir=str(tmp_path / "own")))
  with weight_servers.serving() as servers:
    config = over_http(small, servers)
    found, lines = played(
      dataclasses.replace(config, run_dir=str(tmp_path / "http"))
    )
  assert len(found) == 12
  check_same(found, want)
  assert {s.policy_version for t in found for s in t.steps} == {0, 1}
  assert all(line["policy/sampler_gap"] < 1e-4 for line in lines[1:])


@pytest.mark.slow
def test_rollouts_over_http_go_on_while_the_learner_works(tmp_path):
  small = small_runs.small_config(tmp_path, num_updates=4)
  small = dataclasses.replace(
    small, rollout=dataclasses.replace(small.rollout, staleness=1)
  )
  with weight_servers.serving(2) as servers:
    found, lines = played(over_http(small, servers))
    assert all(s.engine.version > 0 for s in servers)
  assert len(found) == 24
  for one in found:
    update = int(one.uid.split("-")[0])
    assert {s.policy_version for s in one.steps} <= {update, update - 1}
  assert lines[-1]["rollout/staleness"] <= 1


@contextlib.contextmanager
def process(weights, *flags):
  """A server as a user starts it, and its address."""
  command = [
    sys.executable, "-m", "steppo_jax", "serve", "policy", "--weights", weights,
    "--accept-weights", "--context", str(worlds.CONTEXT), "--no-warm-up",
    *flags,
  ]  # fmt: skip
  made = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    yield made, made.stdout.readline().split()[-1]
  finally:
    made.kill()
    made.wait()
    made.stdout.close()


@pytest.mark.slow
def test_servers_that_are_killed_cost_a_run_no_episode(tmp_path, monkeypatch):
  root = pathlib.Path(__file__).parents[3]
  monkeypatch.setenv("PYTHONPATH", str(root))
  small = small_runs.small_config(tmp_path, num_updates=2)
  want, _ = played(dataclasses.replace(small, run_dir=str(tmp_path / "own")))
  with (
    process(small.weights) as (dying, first),
    process(small.weights) as (_, second),
  ):
    config = dataclasses.replace(
      small,
      rollout=dataclasses.replace(small.rollout, engine="http"),
      engines=EngineConfig((first, second)),
      run_dir=str(tmp_path / "http"),
    )
    folder, found = run_folder.open_folder(config, "test", "test"), {}

    def on_episode(one):
      found[one.uid] = one
      if len(found) == 2:
        dying.kill()

    train.train(
      config, folder, on_update=lambda *_: None, on_episode=on_episode
    )
  check_same([found[uid] for uid in sorted(found)], want)
  lines = metrics.read_jsonl(folder)
  assert all(line["rollout/error_share"] == 0 for line in lines[1:])
