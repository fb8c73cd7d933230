"""A remote environment, against a server in a process of its own.

The real servers of OpenEnv are in `tests/standards`.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
import worlds
from websockets.sync import client

from steppo_jax import types
from steppo_jax.envs import base, remote
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import counts, loop
from steppo_jax.training import config, players

TASK = types.Task("t", "remote", "remote", {"seed": 5})


class Service:
  """The program `service.py` and its address."""

  def __init__(self, *arguments):
    program = pathlib.Path(worlds.__file__).parent / "envs" / "service.py"
    self.process = subprocess.Popen(
      [sys.executable, str(program), *map(str, arguments)],
      stdout=subprocess.PIPE,
      text=True,
    )
    self.port = int(self.process.stdout.readline())
    self.url = "http://{}:{}/env".format("localhost", self.port)

  def ask(self, kind, data=None):
    with client.connect(f"ws://localhost:{self.port}/env/ws") as socket:
      socket.send(json.dumps({"type": kind, "data": data}))
      return json.loads(socket.recv())["data"]

  def behave(self, request, act, argument=None):
    self.ask("behave", [request, act, argument])

  def counts(self):
    return self.ask("counts")

  def stop(self):
    self.process.kill()
    self.process.stdout.close()
    self.process.wait()


@pytest.fixture
def start():
  """Starts services, which end with the test."""
  made = []

  def one(*arguments):
    made.append(Service(*arguments))
    return made[-1]

  yield one
  for service in made:
    service.stop()


@pytest.fixture
def service(start):
  return start()


@pytest.fixture
def env(service):
  made = remote.RemoteEnv(service.url, timeout_s=5, backoff_s=0.01)
  yield made
  made.close()


def test_an_episode_is_played(env):
  first = env.reset(TASK, 0)
  assert first.observation == "seed 5"
  assert (first.reward, first.terminated) == (0.0, False)
  out = env.step("wait")
  assert out.observation == "1: you said wait"
  assert out.info["commands"] == ["win", "wait"]
  out = env.step("win")
  assert (out.reward, out.terminated, out.info["won"]) == (1.0, True, True)
  # The next episode is played in the same session.
  assert env.reset(TASK, 0).observation == "seed 5"
  assert env.step("wait").observation == "1: you said wait"


def test_long_and_strange_texts_arrive(env):
  env.reset(TASK, 0)
  for number, text in enumerate(("x" * 200_000, "\0\x1b", "ü€𝄞", "\ud800"), 1):
    assert env.step(text).observation == f"{number}: you said {text}"


def test_each_episode_has_a_session_of_its_own(service):
  envs = [remote.RemoteEnv(service.url, sessions=3) for _ in range(3)]
  for env in envs:
    env.reset(TASK, 0)
  for count, env in enumerate(envs):
    for _ in range(count):
      env.step("wait")
  seen = [env.step("wait").observation for env in envs]
  assert seen == [f"{n}: you said wait" for n in (1, 2, 3)]
  assert service.counts()["most"] == 3
  for env in envs:
    env.close()


def test_a_reset_is_tried_again_and_a_step_is_not(env, service):
  service.behave("reset", "hang_up")
  service.behave("reset", "raw", "<html>")
  env.reset(TASK, 0)
  assert service.counts()["resets"] == 3
  service.behave("step", "hang_up")
  with pytest.raises(base.EnvBadAnswer, match=r"step of .*: the connection"):
    env.step("wait")
  assert service.counts()["steps"] == 1
  with pytest.raises(RuntimeError, match="call reset"):
    env.step("wait")
  assert env.reset(TASK, 0).observation == "seed 5"


def test_an_action_that_is_refused_is_invalid_and_the_episode_goes_on(env):
  env.reset(TASK, 0)
  env.step("wait")
  out = env.step("")
  assert out.observation == (
    "The action was refused: Invalid message; message: Field required"
  )
  assert (out.reward, out.terminated, out.truncated) == (0.0, False, False)
  assert out.info == {
    "won": False, "invalid": True, "anchor": "", "commands": ["win", "wait"],
  }  # fmt: skip
  assert env.step("win").observation == "2: you said win"


def test_a_late_answer_is_not_taken_for_the_next(service):
  env = remote.RemoteEnv(service.url, timeout_s=1, retries=0)
  env.reset(TASK, 0)
  service.behave("step", "sleep", 1.5)
  with pytest.raises(base.EnvTimeout, match=r"step of .* within 1 s"):
    env.step("win")
  assert env.reset(TASK, 0).observation == "seed 5"
  env.close()


@pytest.mark.parametrize(
  ("request_", "act", "argument", "error", "message"),
  [
    (
      "step", "error", ("EXECUTION_ERROR", "as asked"), base.EnvRaised,
      "step of .*: it raised: as asked",
    ),
    (
      "step", "error", ("UNKNOWN_TYPE", "no"), base.EnvBadAnswer,
      "UNKNOWN_TYPE: no",
    ),
    (
      "reset", "error", ("VALIDATION_ERROR", "no such task"),
      base.EnvBadAnswer, "reset of .*: VALIDATION_ERROR: no such task",
    ),
    ("step", "raw", "<html>", base.EnvBadAnswer, "not JSON: <html>"),
    ("step", "raw", "[]", base.EnvBadAnswer, r"no observation: \[\]"),
    ("step", "raw", "{}", base.EnvBadAnswer, "no observation: {}"),
    (
      "step", "raw", '{"type": "observation", "data": {}}',
      base.EnvBadAnswer, "observation 'None' is not text",
    ),
    (
      "step", "raw", '{"type": "observation", "data": {"observation": '
      '{"message": "x"}, "done": false}}', base.EnvBadAnswer,
      "no 'text', only message: set observation_field",
    ),
    (
      "step", "raw", '{"type": "observation", "data": {"observation": "x", '
      '"done": 0}}', base.EnvBadAnswer, "done 0 is not true or false",
    ),
  ],
)  # fmt: skip
def test_a_service_that_fails_is_named(
  env, service, request_, act, argument, error, message
):
  if request_ == "step":
    env.reset(TASK, 0)
  service.behave(request_, act, argument)
  with pytest.raises(error, match=message) as raised:
    env.step("wait") if request_ == "step" else env.reset(TASK, 0)
  if error is base.EnvRaised:
    assert raised.value.cause == "EXECUTION_ERROR"


def test_a_service_that_is_down_is_named(env, service):
  env.reset(TASK, 0)
  service.stop()
  with pytest.raises(base.EnvBadAnswer, match="the connection broke"):
    env.step("wait")
  with pytest.raises(base.EnvUnreachable, match="is the service up"):
    env.reset(TASK, 0)


def test_a_server_without_a_free_place_is_waited_for_and_named(start):
  service = start(1)
  first, second = (
    remote.RemoteEnv(service.url, backoff_s=0.01) for _ in range(2)
  )
  first.reset(TASK, 0)
  with pytest.raises(base.EnvUnreachable, match="larger max_concurrent_envs"):
    second.reset(TASK, 0)
  first.close()
  assert second.reset(TASK, 0).observation == "seed 5"
  second.close()


def test_what_is_no_server_of_openenv_is_named(service):
  env = remote.RemoteEnv(service.url + "/other", retries=0)
  with pytest.raises(base.EnvBadAnswer, match="no WebSocket of OpenEnv at"):
    env.reset(TASK, 0)
  env.close()


@pytest.mark.parametrize("described", [True, False])
def test_fields_are_those_of_the_description_or_of_the_options(
  start, described
):
  service = start(9, *([] if described else ["schema"]))
  given = {"action_field": "*", "observation_field": "text"}
  for options in ({}, given):
    env = remote.RemoteEnv(service.url, **options)
    env.reset(TASK, 0)
    text = '{"message": "win"}' if options else "win"
    assert env.step(text).info["won"]
    if options:
      env.reset(TASK, 0)
      for text in ("win", "[1]", '{"text": "win"}'):
        out = env.step(text)
        assert out.info["invalid"]
        assert "refused" in out.observation
      assert env.step('{"message": "win"}').observation == "1: you said win"
    env.close()


@pytest.mark.parametrize("url", ["", "HOST:80", "ftp://HOST", "http://"])
def test_an_address_that_is_none_is_refused(url):
  with pytest.raises(ValueError, match="url"):
    remote.RemoteEnv(url)
  with pytest.raises(ValueError, match="sessions=0 must be at least 1"):
    remote.RemoteEnv("http://HOST:1", sessions=0)


@pytest.mark.parametrize("workers", [0, 2, 9])
def test_as_many_play_as_the_services_have_places(workers):
  options = ("url=http://HOST:1 http://HOST:2", "sessions=2")
  made = players.make_env(
    config.EnvConfig(name="remote", options=options, workers=workers)
  )
  assert made.at_once == (min(workers, 4) or 4)
  made.close()


def test_a_rollout_shares_out_services_and_survives_one_that_goes_down(start):
  service, second = start(), start()
  recipes = base.resolve(
    "remote", {"name": "remote"},
    {"url": f"{service.url} {second.url}", "timeout_s": 5, "retries": 0},
  )  # fmt: skip
  tasks = recipes.tasks.make().sample(6, seed=0, update=0)
  episodes = [loop.Episode(t.uid, t, 0, (0, i)) for i, t in enumerate(tasks)]
  engine = worlds.ScriptedEngine(lambda uid, turn: ("wait", "win")[turn])
  limits = dataclasses.replace(worlds.ROLLOUT, max_live=2, env_threads=2)
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  play = lambda: loop.run(engine, recipes.env.make, episodes, prompt, limits)

  assert [(t.error, t.success, len(t.steps)) for t in play()] == [
    (None, True, 2)
  ] * 6
  both = [one.counts() for one in (service, second)]
  assert sum(one["resets"] for one in both) == 6
  assert min(one["resets"] for one in both) > 0
  second.stop()
  done = play()
  failed = counts.summary(done)["error/EnvUnreachable"][0]
  assert 0 < failed == 6 - sum(t.success for t in done) < 6
