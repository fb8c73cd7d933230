"""Sessions of the real servers of OpenEnv; run by `make test-standards`."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import time

import pytest
import worlds

from steppo_jax import types
from steppo_jax.envs import base, remote
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import counts, loop

pytestmark = pytest.mark.standards

PROGRAM = pathlib.Path(__file__).parent / "openenv_server.py"
TASK = types.Task("t", "remote", "remote", {"seed": 5})
PACKAGES = ("openenv-0.10.0", "openenv-core-0.3.0")


class Server:
  """One server in an interpreter that has the package."""

  def __init__(self, package, name, places):
    python = pathlib.Path(os.environ["STEPPO_STANDARDS"]) / package
    self.process = subprocess.Popen(
      [str(python / "bin" / "python"), str(PROGRAM), name, str(places)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    port = int(self.process.stdout.readline())
    self.url = "http://{}:{}".format("localhost", port)
    self.places = places

  def env(self, **options):
    options = {"sessions": self.places, "timeout_s": 20, **options}
    return contextlib.closing(remote.RemoteEnv(self.url, **options))

  def megabytes(self):
    self.process.stdin.write("\n")
    self.process.stdin.flush()
    return float(self.process.stdout.readline())

  def stop(self):
    self.process.kill()
    self.process.wait()
    self.process.stdin.close()
    self.process.stdout.close()


@pytest.fixture(params=PACKAGES)
def start(request):
  """Starts servers of one package, which end with the test."""
  made = []

  def one(name, places):
    made.append(Server(request.param, name, places))
    return made[-1]

  yield one
  for server in made:
    server.stop()


def test_an_episode_keeps_its_state_and_others_are_apart(start):
  server = start("counting", 2)
  task = dataclasses.replace(TASK, payload={"seed": 5, "options": {"goal": 7}})
  with server.env() as one, server.env() as other:
    assert one.reset(task, 0).observation == "seed 5 goal 7"
    assert other.reset(TASK, 0).observation == "seed 5 goal None"
    assert one.step("a").observation == "1: a"
    assert one.step("b").observation == "2: b"
    assert other.step("c").observation == "1: c"
    out = one.step("win")
    assert (out.reward, out.terminated, out.info["won"]) == (1.0, True, True)
    assert one.reset(TASK, 0).observation == "seed 5 goal None"


def test_what_is_refused_is_invalid_and_what_raises_costs_its_episode(start):
  server = start("counting", 1)
  with server.env(action_field="*") as env:
    env.reset(TASK, 0)
    out = env.step('{"massage": "a"}')
    assert out.info["invalid"]
    assert "message: Field required" in out.observation
    assert env.step('{"message": "a"}').observation == "1: a"
    with pytest.raises(base.EnvRaised, match="it raised: as asked") as raised:
      env.step('{"message": "raise"}')
    assert raised.value.cause == "EXECUTION_ERROR"
    assert env.reset(TASK, 0).observation == "seed 5 goal None"


def test_typed_fields_are_read_by_the_description(start):
  with start("columns", 1).env() as env:
    first = env.reset(TASK, 0)
    assert first.observation == '{"cells": [0, 0, 0], "legal": [0, 1, 2]}'
    assert env.step("a").info["invalid"]
    assert env.step('"a"').info["invalid"]
    out = env.step("1")
    assert out.observation == '{"cells": [0, 1, 0], "legal": [0, 1, 2]}'
    assert out.reward == 0.0
    assert env.step("1").terminated


def test_a_server_that_is_full_hung_or_dead_is_named(start):
  server = start("counting", 1)
  with server.env() as one, server.env(backoff_s=0.01) as other:
    one.reset(TASK, 0)
    with pytest.raises(base.EnvUnreachable, match="capacity: 1/1"):
      other.reset(TASK, 0)
  with server.env(timeout_s=1, retries=0) as env:
    for _ in range(50):  # The place is free once the server has heard of it.
      with contextlib.suppress(base.EnvUnreachable):
        env.reset(TASK, 0)
        break
      time.sleep(0.1)
    os.kill(server.process.pid, 19)
    with pytest.raises(base.EnvTimeout, match="no answer within 1 s"):
      env.step("a")
    os.kill(server.process.pid, 18)
    server.stop()
    with pytest.raises(base.EnvUnreachable, match="is the service up"):
      env.reset(TASK, 0)


def test_a_rollout_of_eight_sessions(start):
  server = start("counting", 8)
  recipes = base.resolve(
    "remote", {"name": "remote"}, {"url": server.url, "sessions": 8}
  )
  tasks = recipes.tasks.make().sample(64, seed=0, update=0)
  episodes = [loop.Episode(t.uid, t, 0, (0, i)) for i, t in enumerate(tasks)]
  said = ("wait", "wait", "wait", "win")
  engine = worlds.ScriptedEngine(lambda uid, turn: said[turn])
  limits = dataclasses.replace(worlds.ROLLOUT, max_live=8, env_threads=8)
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  began = time.monotonic()
  done = loop.run(engine, recipes.env.make, episodes, prompt, limits)
  seconds = time.monotonic() - began
  print(f"{256 / seconds:.0f} steps a second, {server.megabytes():.0f} MB")
  assert [(t.error, t.success, len(t.steps)) for t in done] == [
    (None, True, 4)
  ] * 64
  # A server that dies in the middle costs the episodes that it was playing.
  asked = iter(range(1000))

  def answer(uid, turn):
    if next(asked) == 100:
      server.process.kill()
    return said[turn]

  engine = worlds.ScriptedEngine(answer)
  done = loop.run(engine, recipes.env.make, episodes, prompt, limits)
  failed = sum(t.error is not None for t in done)
  assert failed == sum(
    n for name, (n, *_) in counts.summary(done).items() if "error/" in name
  )
  assert 0 < failed < 64
