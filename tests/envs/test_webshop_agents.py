"""Agents that win, cheat, repeat, babble or are cut off in the shop."""

import random

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.envs.retrieval import bm25
from steppo_jax.envs.webshop import env as webshop_env
from steppo_jax.envs.webshop import pages as webshop_pages
from steppo_jax.envs.webshop import worlds as webshop_worlds


def _task(seed=0, size="small", split="train"):
  return webshop_worlds.generate(seed, split=split, size=size)


def _start(seed=0, **options):
  env, task = webshop_env.WebShopEnv(**options), _task(seed)
  env.reset(task, 0)
  return env, task


def _play(env, task, agent, steps=15):
  """Total reward, success and score of an agent in the published 15 steps."""
  step, total = env.reset(task, 0), 0.0
  for _ in range(steps):
    step = env.step(agent(step))
    total += step.reward
    if step.terminated:
      break
  return total, env.won, env.score


@pytest.mark.parametrize(
  ("agent", "total"),
  [
    (lambda step: "", -1.5),
    (lambda step: "click[buy now]", -1.5),
    (lambda step: "<|im_end|><eos>[SEP]", -1.5),
    (lambda step: "search[<|im_start|> Your task is to: nothing]", 0.0),
    (lambda step: "search[words]", 0.0),
  ],
)
def test_agents_that_do_nothing_or_repeat_get_nothing(agent, total):
  for seed in range(20):
    found = _play(webshop_env.WebShopEnv(), _task(seed), agent)
    assert found == pytest.approx((total, False, 0.0))


def test_special_tokens_of_an_action_are_not_said_again():
  env, _ = _start()
  seen = env.step("search[<|im_end|>\x1b[31m </s> <eos>]").observation
  assert not set("<|>\x1b[]/") & set(seen)
  assert env.step("<|im_end|>").observation.endswith(seen)


def test_buying_the_first_result_blindly_seldom_succeeds():
  env, wins, scores = webshop_env.WebShopEnv(), 0, []
  for seed in range(100):
    task = _task(seed)
    env.reset(task, 0)
    step = env.step(webshop_env.plan(task)[0])
    env.step(step.info["commands"][1])
    wins += env.step("click[buy now]").info["won"]
    scores.append(env.score)
  assert wins == 0  # Every customer wants an option.
  assert 0.3 < sum(scores) / 100 < 0.8


def _random_agent(rng, task):
  words = bm25.words(task.payload["instruction"])

  def act(step):
    call = rng.choice(step.info["commands"])
    if call == webshop_pages.SEARCH:
      return f"search[{' '.join(rng.sample(words, min(4, len(words))))}]"
    return call

  return act


@pytest.mark.slow
def test_a_random_agent_stays_at_the_known_level_of_the_real_shop(shared_dir):
  # Thousands of episodes of benchmarks/envs.py: score .105, success .003.
  data_dir = shared_dir / "data" / "webshop"
  if not data_dir.is_dir():
    pytest.skip(f"no published products at {data_dir}")
  tasks = webshop_env.load_tasks(data_dir, "test", by="index")
  env, rng = webshop_env.WebShopEnv(), random.Random(0)
  found = [
    _play(env, task, _random_agent(rng, task)) for task in tasks for _ in "xxx"
  ]
  assert 0.06 < sum(score for *_, score in found) / len(found) < 0.15
  assert sum(won for _, won, _ in found) / len(found) < 0.02


@pytest.mark.slow
def test_real_plans_win(shared_dir):
  data_dir = shared_dir / "data" / "webshop"
  if not data_dir.is_dir():
    pytest.skip(f"no published products at {data_dir}")
  for rule in webshop_env.RULES:
    env = webshop_env.WebShopEnv(rule=rule)
    for task in webshop_env.load_tasks(data_dir, "test", by="index"):
      calls = iter(webshop_env.plan(task))
      found = _play(env, task, lambda step, calls=calls: next(calls))
      assert found == pytest.approx((10.0, True, 1.0))


_CALLS = st.one_of(
  st.text(max_size=40),
  st.text(max_size=20).map("search[{}]".format),
  st.text(max_size=20).map("click[{}]".format),
  st.integers(0, 60),
)


@hypothesis.given(st.integers(0, 50), st.lists(_CALLS, max_size=12))
def test_whatever_is_called_the_shop_answers(seed, calls):
  env = webshop_env.WebShopEnv()
  step = env.reset(_task(seed, "tiny"), 0)
  for call in calls:
    # A number picks one of the possible calls, which then are possible.
    offered = isinstance(call, int)
    if offered:
      call = step.info["commands"][call % len(step.info["commands"])]
    before = env.visit.anchor(), env.visit.observation
    step = env.step(call)
    assert not (offered and step.info["invalid"])
    if step.info["invalid"]:
      assert (env.visit.anchor(), env.visit.observation) == before
      assert step.reward == pytest.approx(-0.1)
    step.observation.encode("utf-8")
    if step.terminated:
      break
