"""What training and evaluation play with, made once and never changed."""

import contextlib
import dataclasses
import functools
import inspect

import pytest
import worlds
from small_runs import small_config

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.household import env as household
from steppo_jax.processes import hosts
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import journal, loop
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.training import evaluate, players

# What the environments of `small_config` are.
HOUSEHOLD = functools.partial(household.HouseholdEnv, invalid_penalty=0.1)


@pytest.fixture
def options(tmp_path):
  """A run on tiny household games with a tiny model."""
  return small_config(tmp_path)


def make(options, **how):
  return players.make(options, worlds.model(), worlds.tokenizer(), **how)


def by_hand(options, temperature):
  """Two episodes through the loop itself, with parts made one by one."""
  engine = engine_lib.SlotEngine(
    worlds.model(),
    options.sampler,
    context=options.rollout.max_tokens,
    max_new_tokens=options.rollout.max_new_tokens,
    end_of_turn_id=worlds.tokenizer().end_of_turn_id,
    seed=options.seed,
  )
  engine.set_params(worlds.policy(), 0)
  limits = dataclasses.replace(options.rollout, temperature=temperature)
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  return loop.run(engine, HOUSEHOLD, worlds.episodes(2), prompt, limits)


@pytest.mark.parametrize(
  ("given", "temperature"),
  [({}, 1.0), ({"temperature": 0.0}, 0.0), ({"temperature": 0.5}, 0.5)],
)
def test_players_play_what_the_loop_plays(options, given, temperature):
  ended = []
  with make(options) as playing:
    playing.engine.set_params(worlds.policy(), 0)
    found = playing.play(worlds.episodes(2), on_finish=ended.append, **given)
  want = by_hand(options, temperature)
  assert len(found) == len(ended) == len(want) == 2
  for one, other in zip(found, want, strict=True):
    assert one.error is None
    assert journal.same(one, other)


def test_every_wait_for_an_environment_is_told(options):
  waits = []

  @contextlib.contextmanager
  def waiting():
    waits.append("began")
    yield
    waits.append("ended")

  with make(options, waiting=waiting) as playing:
    playing.engine.set_params(worlds.policy(), 0)
    episode = playing.play(worlds.episodes(1))[0]
  # At least one for the reset, and one for the step after each response.
  assert len(waits) >= 2 * (1 + len(episode.steps))
  assert waits == ["began", "ended"] * (len(waits) // 2)


class Second(hosts.Hosts):
  """The second of two processes, whose words reach nobody."""

  index, count = 1, 2

  def gather(self, what, part):
    raise RuntimeError("nobody is there")


def test_an_evaluator_plays_the_share_of_its_process(options):
  tasks = players.make_tasks(options.env).panel("valid_unseen", 3)
  ended = []
  with make(options, hosts=Second()) as playing:
    playing.engine.set_params(worlds.policy(), 0)
    evaluator = evaluate.Evaluator(playing, tasks, 0.0)
    with pytest.raises(RuntimeError, match="nobody is there"):
      evaluator(on_finish=ended.append)
  # Of the tasks 0, 1 and 2 the process with index 1 of 2 has the middle one.
  assert [one.task.uid for one in ended] == [tasks[1].uid]


def test_players_and_evaluators_cannot_be_changed(options):
  with make(options) as playing:
    evaluator = evaluate.Evaluator(playing, (), 0.0)
    for made in (playing, evaluator):
      for field in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
          setattr(made, field.name, None)


@pytest.mark.parametrize(
  ("workers", "max_live", "limited"),
  [(0, None, None), (0, 5, 5), (2, None, 2), (2, 1, 1), (2, 5, 2)],
)
def test_no_more_episodes_are_under_way_than_there_are_environments(
  options, workers, max_live, limited
):
  options = dataclasses.replace(
    options,
    env=dataclasses.replace(options.env, workers=workers),
    rollout=dataclasses.replace(options.rollout, max_live=max_live),
  )
  with make(options) as playing:
    assert playing.rollout == dataclasses.replace(
      options.rollout, max_live=limited
    )


def test_leaving_the_context_ends_the_workers(options):
  options = dataclasses.replace(
    options, env=dataclasses.replace(options.env, workers=1)
  )
  with make(options) as playing:
    playing.engine.set_params(worlds.policy(), 0)
    assert playing.play(worlds.episodes(1))[0].error is None
    workers = list(playing.make_env._all)
    assert len(workers) == playing.make_env.started == 1
    assert workers[0].alive
  assert not workers[0].alive
  with pytest.raises(base.EnvDied, match="have been closed"):
    playing.make_env().reset(worlds.episodes(1)[0].task, 0)


def test_the_engine_is_all_that_the_protocol_promises():
  engine = worlds.engine()
  assert isinstance(engine, types.Engine)
  # A protocol that promises nothing would be kept by anything.
  assert not isinstance(worlds.ScriptedEngine(lambda *_: "look"), types.Engine)
  names = lambda method: list(inspect.signature(method).parameters)
  for name, promised in vars(types.Engine).items():
    if inspect.isfunction(promised) and not name.startswith("_"):
      assert names(getattr(engine_lib.SlotEngine, name)) == names(promised)


def test_the_version_is_that_of_the_weights(options):
  with make(options) as playing:
    assert playing.engine.version is None
    for version in (0, 7):
      playing.engine.set_params(worlds.policy(), version)
      assert playing.engine.version == version


class NoTasks:
  """The tasks of an environment whose files held none that were wanted."""

  def sample(self, count, *, seed, update):
    return []

  def panel(self, split, count):
    return []


def test_a_split_without_tasks_is_refused():
  with pytest.raises(ValueError, match="split 'test' of mine holds no task"):
    players.panel(NoTasks(), "mine", "test", 5)
  assert players.panel(NoTasks(), "mine", "test", 0) == []
