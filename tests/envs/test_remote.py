"""A remote environment, against a service in a process of its own."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import urllib.request

import pytest
import worlds

from steppo_jax import types
from steppo_jax.envs import base, remote
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import counts, loop

TASK = types.Task("t", "remote", "remote", {"seed": 5})


class Service:
  """The program `service.py` and its address."""

  def __init__(self):
    program = pathlib.Path(worlds.__file__).parent / "envs" / "service.py"
    self.process = subprocess.Popen(
      [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    )
    port = int(self.process.stdout.readline())
    self.url = "http://{}:{}/env".format("localhost", port)

  def behave(self, path, act, argument=None):
    data = json.dumps({"act": [path, act, argument]}).encode()
    request = urllib.request.Request(self.url + "/behave", data)
    urllib.request.urlopen(request).close()

  def counts(self):
    with urllib.request.urlopen(self.url + "/counts") as answer:
      return json.load(answer)

  def stop(self):
    self.process.kill()
    self.process.stdout.close()
    self.process.wait()


@pytest.fixture
def service():
  made = Service()
  yield made
  made.stop()


@pytest.fixture
def second():
  made = Service()
  yield made
  made.stop()


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
  assert out.observation == "you said wait"
  assert out.info["commands"] == ["win", "wait"]
  out = env.step("win")
  assert (out.reward, out.terminated, out.info["won"]) == (1.0, True, True)
  assert env.state()["step_count"] == 2


def test_long_and_strange_texts_arrive(env):
  env.reset(TASK, 0)
  for text in ("", "x" * 200_000, "\0\x1b", "ü€𝄞", "\ud800"):
    assert env.step(text).observation == f"you said {text}"


def test_a_reset_is_tried_again_and_a_step_is_not(env, service):
  service.behave("/reset", "hang_up")
  service.behave("/reset", "status", 500)
  env.reset(TASK, 0)
  assert service.counts() == {"resets": 3, "steps": 0}
  service.behave("/step", "hang_up")
  with pytest.raises(base.EnvBadAnswer, match=r"POST .*/step: the connection"):
    env.step("wait")
  assert service.counts()["steps"] == 1


def test_a_step_that_was_turned_away_is_sent_again(env, service):
  env.reset(TASK, 0)
  service.behave("/step", "status", 503)
  # This service counts it all the same, which is then found out.
  with pytest.raises(base.EnvBadAnswer, match="another client uses it"):
    env.step("wait")
  assert service.counts()["steps"] == 2


@pytest.mark.parametrize(
  ("act", "argument", "error", "message"),
  [
    ("sleep", 2.0, base.EnvTimeout, r"/step: no answer within 1 s"),
    ("drip", 2.0, base.EnvTimeout, r"/step: no answer within 1 s"),
    ("cut", None, base.EnvBadAnswer, "the connection broke"),
    ("status", 500, base.EnvBadAnswer, "status 500: .*as asked"),
    ("raw", "<html>", base.EnvBadAnswer, "not JSON: <html>"),
    ("raw", "[]", base.EnvBadAnswer, "not an object"),
    ("raw", "{}", base.EnvBadAnswer, "observation 'None' is not text"),
    (
      "raw", '{"observation": {"message": "x"}, "done": false}',
      base.EnvBadAnswer, "no 'text', only message: set observation_field",
    ),
    (
      "raw", '{"observation": "x", "done": 0}', base.EnvBadAnswer,
      "done 0 is not true or false",
    ),
  ],
)  # fmt: skip
def test_a_service_that_fails_is_named(service, act, argument, error, message):
  # Only what waits is to run into the limit: a busy machine answers slowly.
  limit = 1 if error is base.EnvTimeout else 20
  env = remote.RemoteEnv(service.url, timeout_s=limit, retries=0)
  env.reset(TASK, 0)
  service.behave("/step", act, argument)
  with pytest.raises(error, match=message):
    env.step("wait")
  env.close()


def test_a_service_that_is_down_is_named(service):
  env = remote.RemoteEnv(service.url, timeout_s=5, backoff_s=0.01)
  env.reset(TASK, 0)
  service.stop()
  with pytest.raises(base.EnvUnreachable, match="is the service up"):
    env.step("wait")
  with pytest.raises(base.EnvUnreachable, match="is the service up"):
    env.reset(TASK, 0)
  env.close()


def test_another_client_on_the_same_service_is_noticed(env, service):
  env.reset(TASK, 0)
  other = remote.RemoteEnv(service.url)
  other.reset(TASK, 0)
  with pytest.raises(base.EnvBadAnswer, match="another client uses it"):
    env.step("wait")
  other.close()


def test_a_service_without_state_is_taken_at_its_word(env, service):
  service.behave("/state", "status", 404)
  env.reset(TASK, 0)
  assert env.step("win").terminated
  assert env.state() == {}


@pytest.mark.parametrize("url", ["", "HOST:80", "ftp://HOST", "http://"])
def test_an_address_that_is_none_is_refused(url):
  with pytest.raises(ValueError, match="url"):
    remote.RemoteEnv(url)


def test_a_rollout_shares_out_services_and_survives_one_that_goes_down(
  service, second
):
  recipes = base.resolve(
    "remote", {"name": "remote"},
    {"url": f"{service.url} {second.url}", "timeout_s": 5, "retries": 0},
  )  # fmt: skip
  tasks = recipes.tasks.make().sample(6, seed=0, update=0)
  episodes = [loop.Episode(t.uid, t, 0, (0, i)) for i, t in enumerate(tasks)]
  engine = worlds.ScriptedEngine(lambda uid, turn: ("wait", "win")[turn])
  config = dataclasses.replace(worlds.ROLLOUT, max_live=2, env_threads=2)
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  play = lambda: loop.run(engine, recipes.env.make, episodes, prompt, config)

  assert [(t.error, t.success, len(t.steps)) for t in play()] == [
    (None, True, 2)
  ] * 6
  assert service.counts()["resets"] + second.counts()["resets"] == 6
  assert service.counts()["resets"] > 0
  assert second.counts()["resets"] > 0
  second.stop()
  done = play()
  failed = counts.summary(done)["error/EnvUnreachable"][0]
  assert 0 < failed == 6 - sum(t.success for t in done) < 6
