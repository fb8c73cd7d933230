"""Tasks of the package verifiers, played here; run by `make test-standards`."""

import dataclasses
import json
import os
import pathlib
import time

import pytest
import small_runs
import worlds

from steppo_jax.envs import base
from steppo_jax.envs.workers import options as workers_options
from steppo_jax.storage import metrics
from steppo_jax.training import config, players

pytestmark = pytest.mark.standards

TASKSETS = pathlib.Path(__file__).parent / "tasksets"
PACKAGE = "verifiers-0.4.0"
LIMITS = workers_options.WorkerLimits(start_s=300, reset_s=120, step_s=120)


@pytest.fixture(autouse=True)
def python(monkeypatch, tmp_path):
  """Has verifiers and the tasksets, not JAX; writes nothing of the user's."""
  room = pathlib.Path(os.environ["STEPPO_STANDARDS"]) / PACKAGE
  path = tmp_path / "python"
  path.write_text(
    f'#!/bin/sh\nPYTHONPATH={TASKSETS} exec {room}/bin/python "$@"\n'
  )
  path.chmod(0o755)
  monkeypatch.setenv("HOME", str(tmp_path))
  return str(path)


def settings(python, *, limits=LIMITS, workers=1, **options):
  """The options of a run on a taskset."""
  told = tuple(f"{name}={json.dumps(v)}" for name, v in options.items())
  return config.EnvConfig(
    "verifiers", options=told, workers=workers, limits=limits, python=python
  )


@pytest.fixture
def start(python):
  """An environment and its tasks; the workers end with the test."""
  made = []

  def one(**options):
    env = settings(python, **options)
    made.append(players.make_env(env))
    return made[-1](), players.make_tasks(env)

  yield one
  for workers in made:
    workers.close()


def test_the_last_answer_is_paid_and_splits_share_no_task(start):
  env, tasks = start(taskset="vf_words", won_at=2.0)
  seen = {}
  for split, count in (("train", 24), ("valid_seen", 3), ("valid_unseen", 3)):
    found = tasks.panel(split, count)
    seen[split] = {env.reset(task, 0).observation for task in found}
    assert len(seen[split]) == count
  assert not set.intersection(*seen.values())
  first = env.reset(tasks.panel("valid_seen", 1)[0], 0)
  # The ninth task.
  assert first.observation == "Be short.\n\nSay red, number 8."
  assert first.reward == 0.0
  out = env.step("<think>Which one?</think> red")
  assert (out.reward, out.terminated, out.info["won"]) == (2.0, True, True)
  assert out.info["scores"] == {"letters": 3.0, "reward": 2.0}
  env.reset(tasks.panel("valid_seen", 1)[0], 0)
  out = env.step("blue")
  assert (out.reward, out.terminated, out.info["won"]) == (0.0, True, False)


def test_rewards_that_grow_on_the_way_are_paid_step_by_step(start):
  env, tasks = start(taskset="vf_stairs", tasks=20)
  one, other = tasks.panel("train", 2)
  states = [env.reset(one, 0).info["anchor"]]
  paid = []
  for said in ("wait", "up", "up"):
    out = env.step(said)
    paid.append(out.reward)
    states.append(out.info["anchor"])
  assert paid == [0.0, 0.5, 0.5]
  assert out.terminated
  assert out.info["won"]
  assert len(set(states)) == 4
  # Left in the middle, as the loop does at a limit, and begun anew.
  env.reset(other, 0)
  env.step("up")
  assert env.reset(one, 0).info["anchor"] == states[0]
  assert [env.step(s).reward for s in ("up", "up")] == [0.5, 0.5]


def test_tools_are_called_and_a_call_that_cannot_be_read_is_told(start):
  env, tasks = start(
    taskset={"id": "vf_words", "task": {"with_tools": True}},
    invalid_penalty=0.25,
  )
  first = env.reset(tasks.panel("train", 1)[0], 0)
  assert "- words_join: Puts two words together." in first.observation
  for wrong in (
    "<tool_call>{</tool_call>",
    '<tool_call>{"name": "cut", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "words_join", "arguments": []}</tool_call>',
    '<tool_call>{"name": "words_join", "arguments": {}}',
  ):
    refused = env.step(wrong)
    assert refused.info["invalid"]
    assert refused.reward == -0.25
    assert not refused.terminated
  call = {"name": "words_join", "arguments": {"first": "r", "second": "ed"}}
  out = env.step(f"I join. <tool_call>{json.dumps(call)}</tool_call>")
  assert (out.observation, out.reward, out.terminated) == ("red", 0.0, False)
  out = env.step("red")
  assert (out.reward, out.terminated) == (2.0, True)


def test_what_a_taskset_raises_costs_its_episode_and_no_more(start):
  env, tasks = start(taskset="vf_words")
  env.reset(tasks.panel("train", 1)[0], 0)
  with pytest.raises(base.EnvRaised, match="as asked") as raised:
    env.step("raise")
  assert raised.value.cause == "TaskError"
  env.reset(tasks.panel("train", 1)[0], 0)
  assert env.step("red").reward == 2.0


def test_a_taskset_that_hangs_costs_a_worker(start):
  limits = dataclasses.replace(LIMITS, step_s=5.0)
  env, tasks = start(taskset="vf_stairs", tasks=20, limits=limits)
  env.reset(tasks.panel("train", 1)[0], 0)
  with pytest.raises(base.EnvTimeout):
    env.step("hang")
  assert not env.reset(tasks.panel("train", 1)[0], 0).terminated


@pytest.mark.parametrize(
  ("options", "told"),
  [
    ({"taskset": "vf_nothing"}, "taskset 'vf_nothing' not found"),
    ({"taskset": {"id": "vf_words", "cuont": 3}}, "cuont"),
    ({"taskset": {"id": "vf_words", "count": 3}}, "has 3 tasks"),
    ({"taskset": "vf_words", "config": {"id": "user-sim"}}, "one agent is"),
  ],
)
def test_options_that_do_not_fit_are_told(start, options, told):
  limits = dataclasses.replace(LIMITS, start_attempts=1)
  env, tasks = start(limits=limits, **options)
  with pytest.raises(base.EnvError, match=told):
    env.reset(tasks.panel("train", 1)[0], 0)


def test_a_limit_of_verifiers_cuts_the_episode(start):
  env, tasks = start(
    taskset="vf_stairs", tasks=20, config={"climber": {"max_turns": 2}}
  )
  env.reset(tasks.panel("train", 1)[0], 0)
  env.step("wait")
  out = env.step("up")
  assert (out.terminated, out.truncated, out.reward) == (False, True, 0.5)


def test_speed_and_two_updates(start, tmp_path, python):
  env, tasks = start(taskset="vf_stairs", tasks=20)
  task = tasks.panel("train", 1)[0]
  env.reset(task, 0)
  began, count = time.monotonic(), 0
  while time.monotonic() < began + 5:
    env.step("wait")
    count += 1
  rate = count / (time.monotonic() - began)
  began = time.monotonic()
  for _ in range(3):
    env.reset(task, 0)
  pause = (time.monotonic() - began) / 3
  print(f"\nverifiers: {rate:.0f} steps a second, a reset takes {pause:.2f} s")
  made = small_runs.small_config(
    tmp_path,
    num_updates=2,
    tasks_per_update=4,
    env=settings(python, taskset="vf_words", workers=2),
    rollout=dataclasses.replace(worlds.ROLLOUT, max_steps=2, env_threads=2),
    evaluation=config.EvalConfig(every=2, episodes=2),
  )
  folder = small_runs.run(made)
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  assert [line["update"] for line in lines] == [0, 1, 2]
  assert all(line["rollout/error_share"] == 0 for line in lines[1:])
