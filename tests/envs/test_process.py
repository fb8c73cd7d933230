"""Environments in worker processes: what goes there, what comes back."""

import contextlib
import dataclasses

import hypothesis
import pools
import pytest
from hypothesis import strategies as st
from marks import some
from pools import TASK, pool

from steppo_jax.envs import base
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.envs.workers import client, options, worker
from steppo_jax.envs.workers import pool as workers_pool
from steppo_jax.processes import frames

pytestmark = pytest.mark.usefixtures("no_process_is_left")


def limits(**changes):
  return dataclasses.replace(pools.QUICK, **changes)


def test_an_environment_answers_in_a_worker_as_it_does_here():
  task = household_worlds.generate(3, split="train", size="tiny")
  here = household.HouseholdEnv(invalid_penalty=0.25)
  here.reset(task, 0)
  plan = ["fly", *here.game.plan()]
  recipe = base.Recipe(
    "steppo_jax.envs.household.env:HouseholdEnv", {"invalid_penalty": 0.25}
  )
  with workers_pool.Workers(recipe, 1, pools.QUICK) as workers:
    there = workers()
    assert there.reset(task, 0) == here.reset(task, 0)
    for text in plan:
      assert there.step(text) == here.step(text)
    there.close()


def test_a_worker_imports_no_jax():
  with pool() as workers:
    env = workers()
    env.reset(TASK, 0)
    modules = env.step("modules").observation.split()
    env.close()
  assert "steppo_jax.envs.workers.worker" in modules
  heavy = {"jax", "jaxlib", "flax", "optax", "tensorflow", "orbax"}
  assert not heavy & set(modules)


def test_numpy_numbers_and_tuples_arrive_as_plain_ones():
  with pool() as workers:
    env = workers()
    assert env.reset(TASK, 7).observation == "t 7"
    out = env.step("hello")
    assert (out.reward, out.terminated) == (0.5, False)
    assert out.info["won"] is True
    assert out.info["commands"] == ["a", "b"]
    env.close()


@pytest.mark.parametrize(
  "text", ["", "\0\x1b[0m", "\ud800 lone", "ü€𝄞", "x" * 300_000],
  ids=["empty", "control", "surrogate", "unicode", "long"],
)  # fmt: skip
def test_any_text_goes_there_and_back(text):
  with pool() as workers:
    env = workers()
    env.reset(TASK, 0)
    assert env.step(text).observation == text
    assert len(env.step("long 5000000").observation) == 5_000_000
    env.close()


def test_what_a_worker_prints_does_no_harm_and_is_kept():
  with pool() as workers:
    env = workers()
    env.reset(TASK, 0)
    for _ in range(3):
      assert env.step("print 100000").observation == "print 100000"
    (worker,) = workers._all
    assert "more noise" in worker.log
    assert len(worker.log) <= client.LOG_BYTES
    with pytest.raises(base.EnvDied, match=r"status 7 in step.*last words"):
      env.step("die 7")


@pytest.mark.parametrize(
  ("text", "error", "message"),
  some(
    ("segfault", base.EnvDied, "SIGSEGV in step"),
    ("raise no server", base.EnvRaised, "no server"),
    ("hold", base.EnvTimeout, "no answer to step within 1 s"),
    slow=[
      ("die 7", base.EnvDied, "status 7 in step"),
      ("closefds", base.EnvDied, "status 1 in step"),
      ("exit 4", base.EnvRaised, "4"),
      ("hang", base.EnvTimeout, "no answer to step within 1 s"),
      ("stopped", base.EnvTimeout, "no answer to step within 1 s"),
    ],
  ),
)
def test_a_worker_that_fails_is_named_and_the_next_reset_gets_another(
  text, error, message
):
  # Only what hangs is to run into the limit: a busy machine answers slowly.
  step_s = 1 if error is base.EnvTimeout else 20
  with pool(limits=limits(step_s=step_s)) as workers:
    env = workers()
    env.reset(TASK, 0)
    first = env.step("a").info["pid"]
    with pytest.raises(error, match=message):
      env.step(text)
    assert pools.gone(first)
    with pytest.raises(RuntimeError, match="call reset"):
      env.step("a")
    assert env.reset(TASK, 1).observation == "t 1"
    assert env.step("a").info["pid"] != first
    assert workers.failed == {error.__name__: 1}
    env.close()


def test_an_exception_keeps_the_name_of_its_kind():
  with pool() as workers:
    env = workers()
    env.reset(TASK, 0)
    with pytest.raises(base.EnvRaised) as raised:
      env.step("raise the server went away")
    assert raised.value.cause == "OSError"
    assert str(raised.value) == "the server went away"


def test_memory_has_a_limit():
  with pool(limits=limits(memory_mb=1024)) as workers:
    env = workers()
    env.reset(TASK, 0)
    assert env.step("eat 64").observation == str(64 << 20)
    with pytest.raises(base.EnvOutOfMemory):
      env.step("eat 4096")
    env.reset(TASK, 0)
    env.close()


@pytest.mark.parametrize(
  ("text", "cause", "message"),
  [
    ("bytes", "TypeError", "the observation is bytes, not text"),
    ("nan", "ValueError", "the reward is nan"),
    ("object", "TypeError", "object is not JSON"),
  ],
)
def test_an_answer_that_is_none_is_an_error(text, cause, message):
  with pool(target="unruly:Bad") as workers:
    env = workers()
    env.reset(TASK, 0)
    with pytest.raises(base.EnvRaised, match=message) as raised:
      env.step(text)
    assert raised.value.cause == cause


def test_limits_must_be_positive():
  with pytest.raises(ValueError, match=r"env\.limits\.step_s=0"):
    options.WorkerLimits(step_s=0)
  with pytest.raises(ValueError, match="at least one worker"):
    pool(0)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(st.characters()),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=8,
)


@hypothesis.given(st.lists(JSON, max_size=4), st.data())
def test_frames_come_out_whole_however_they_are_cut(values, data):
  stream = b"".join(worker.encode({"v": value}) for value in values)
  cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
  incoming, found = frames.Stream(worker.MAX_FRAME), []
  ends = [*sorted(cuts), len(stream)]
  for start, end in zip([0, *ends], ends, strict=False):
    incoming.add(stream[start:end])
    while (message := incoming.next()) is not None:
      found.append(message[0]["v"])
  assert found == values


@hypothesis.given(st.binary(min_size=8))
def test_bytes_that_are_no_frames_are_an_error_or_wait_for_more(garbage):
  stream = frames.Stream(worker.MAX_FRAME)
  stream.add(garbage)
  with contextlib.suppress(ValueError):
    stream.next()


def test_a_frame_that_is_too_long_is_refused_at_its_length():
  stream = frames.Stream(worker.MAX_FRAME)
  stream.add(b"\xff\xff\xff\xff\0\0\0\0")
  with pytest.raises(ValueError, match="a frame of 4294967295 bytes"):
    stream.next()
