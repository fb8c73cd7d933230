"""Gymnasium's environments as ours; skipped where it is not installed."""

import sys

import pytest

from steppo_jax import types
from steppo_jax.envs import base, seeds
from steppo_jax.envs.workers import options as workers_options
from steppo_jax.envs.workers import pool

gymnasium = pytest.importorskip("gymnasium")

from steppo_jax.envs.gymnasium_text import GymnasiumEnv  # noqa: E402

TASKS = seeds.SeedTasks("gymnasium")


def make(name="Count-v0", **options):
  return GymnasiumEnv(name, modules="gym_counting", **options)


def test_text_environments_are_played():
  env = make()
  task = TASKS.panel("valid_seen", 1)[0]
  first = env.reset(task, 0)
  assert env.reset(task, 99) == first  # the task's seed, not the sample's
  number = int(first.observation)
  for k in (1, 2):
    out = env.step(str(number + k))
    assert (out.reward, out.terminated, out.truncated) == (0.0, False, False)
  out = env.step(str(number + 3))
  assert (out.reward, out.terminated, out.info["won"]) == (1.0, True, True)
  assert out.info["anchor"] == out.observation
  env.close()


def test_options_of_a_task_reach_the_reset():
  env = make()
  task = types.Task("t", "gymnasium", "", {"seed": 1, "options": {"rounds": 1}})
  number = int(env.reset(task, 0).observation)
  assert env.step(str(number + 1)).terminated
  env.close()


def test_commands_name_discrete_actions_and_others_are_refused():
  env = make("Switch-v0", commands=["wait", "press"], invalid_penalty=0.5,
             won_above=-2.0)  # fmt: skip
  first = env.reset(TASKS.panel("train", 1)[0], 0)
  assert first.info["commands"] == ["wait", "press"]
  out = env.step("jump")
  assert (out.reward, out.info["invalid"]) == (-0.5, True)
  assert out.observation == "There is no action 'jump'.\ndark"
  out = env.step("press ")
  assert (out.observation, out.terminated, out.info["won"]) == (
    "light", True, True,
  )  # fmt: skip
  env.close()


def test_a_limit_of_gymnasium_truncates():
  env = make("Switch-v0")
  env.reset(TASKS.panel("train", 1)[0], 0)
  ends = [env.step("1") for _ in range(3)]
  assert [e.truncated for e in ends] == [False, False, True]
  assert not any(e.terminated or e.info["won"] for e in ends)
  env.close()


def test_what_an_environment_renders_can_be_the_text():
  env = make("Switch-v0", render=True)
  assert env.reset(TASKS.panel("train", 1)[0], 0).observation == "[ ]"
  assert env.step("2").observation == "[o]"
  env.close()


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("Switch-v0", {"commands": ["a"]}, "1 commands for 2 actions"),
    ("Pendulum-v1", {}, "neither text nor discrete"),
  ],
)
def test_what_is_no_text_environment_is_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    make(name, **options)


def test_an_observation_that_is_no_text_says_what_to_set():
  env = make("Switch-v0", text_key="words")
  with pytest.raises(ValueError, match="set text_key or render"):
    env.reset(TASKS.panel("train", 1)[0], 0)
  env.close()


def test_it_is_played_by_name_in_a_worker():
  recipes = base.resolve(
    "gymnasium", {"name": "gymnasium", "invalid_penalty": 0.1},
    {"id": "Count-v0", "modules": ["gym_counting"]},
  )  # fmt: skip
  task = recipes.tasks.make().sample(1, seed=0, update=0)[0]
  assert task.env == "gymnasium"
  here = recipes.env.make()
  with pool.Workers(recipes.env, 1, workers_options.WorkerLimits()) as workers:
    there = workers()
    assert there.reset(task, 0) == here.reset(task, 0)
    assert there.step("1") == here.step("1")
    there.close()
  here.close()


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "gymnasium", None)
  with pytest.raises(RuntimeError, match=r"steppo_jax\[gymnasium\]"):
    make()
