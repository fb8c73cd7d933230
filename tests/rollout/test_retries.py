"""Episodes whose environment fails: all accounted for, none re-drawn."""

import collections
import dataclasses

import numpy as np
import pytest
import worlds

from steppo_jax.envs import base
from steppo_jax.envs.household import env as household
from steppo_jax.envs.workers import faults, options
from steppo_jax.envs.workers import pool as workers_pool
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import counts, loop

PROMPT = prompt_base.CompactPrompt(worlds.tokenizer())
LIMITS = dataclasses.replace(worlds.ROLLOUT, max_steps=16, max_tokens=384)


def script(episodes, seed=0):
  """Answers that win after a random number of idle steps, by session."""
  rng = np.random.default_rng(seed)
  answers = {}
  for episode in episodes:
    env = household.HouseholdEnv()
    env.reset(episode.task, 0)
    idle = ["inventory"] * int(rng.geometric(0.4) - 1)
    answers[episode.uid] = (idle + env.game.plan())[: LIMITS.max_steps]
  return answers


def play(episodes, make_env, *, slots=4, **changes):
  answers = script(episodes)
  engine = worlds.ScriptedEngine(lambda uid, turn: answers[uid][turn], slots)
  config = dataclasses.replace(LIMITS, **changes)
  return loop.run(engine, make_env, episodes, PROMPT, config)


FAILED = collections.Counter()


class Flaky(household.HouseholdEnv):
  """Fails at the second step of its first two episodes of each game."""

  def reset(self, task, seed):
    self.task, self.count = task, 0
    return super().reset(task, seed)

  def step(self, text):
    self.count += 1
    if self.count == 2 and FAILED[self.task.uid] < 2:
      FAILED[self.task.uid] += 1
      raise OSError("gone for a moment")
    return super().step(text)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 3])
def test_an_episode_that_is_played_again_is_the_episode_it_would_have_been(
  threads,
):
  episodes = worlds.episodes(7)
  play_sampled = lambda make_env: loop.run(
    worlds.engine(4), make_env, episodes, PROMPT,
    dataclasses.replace(worlds.ROLLOUT, env_threads=threads, retries=2),
  )  # fmt: skip
  FAILED.clear()
  whole, again = play_sampled(household.HouseholdEnv), play_sampled(Flaky)
  for a, b in zip(whole, again, strict=True):
    assert (a.retried, b.error) == ((), None)
    assert b.retried == ("OSError: gone for a moment",) * 2
    assert [s.response_ids.tolist() for s in a.steps] == [
      s.response_ids.tolist() for s in b.steps
    ]


def test_retries_that_are_used_up_are_an_error_and_counted_by_cause():
  FAILED.clear()
  done = play(worlds.episodes(3), Flaky, retries=1)
  assert {t.error for t in done} == {"OSError: gone for a moment"}
  assert {t.retried for t in done} == {("OSError: gone for a moment",)}
  found = counts.summary(done)
  assert found["error_share"] == (3.0, 3.0)
  assert found["error/OSError"] == (3.0, 1.0)
  assert found["retried/OSError"] == (3.0, 1.0)
  assert found["retries"] == (3.0, 1.0)


def test_what_cannot_end_otherwise_is_not_played_again():
  done = play(worlds.episodes(2), household.HouseholdEnv, retries=3,
              max_tokens=20)  # fmt: skip
  assert all("rollout.max_tokens=20" in t.error for t in done)
  assert {t.retried for t in done} == {()}


def test_a_reward_that_is_no_number_ends_its_episode():
  class Broken(household.HouseholdEnv):
    def step(self, text):
      return super().step(text)._replace(reward=float("nan"))

  done = play(worlds.episodes(2), Broken)
  assert {t.error for t in done} == {
    "ValueError: the environment gave the reward nan"
  }


def test_no_more_episodes_are_live_than_allowed():
  live, most = [0], [0]

  class Counted(household.HouseholdEnv):
    def reset(self, task, seed):
      live[0] += 1
      most[0] = max(most[0], live[0])
      return super().reset(task, seed)

  def on_finish(_):
    live[0] -= 1

  answers = script(episodes := worlds.episodes(9))
  engine = worlds.ScriptedEngine(lambda uid, turn: answers[uid][turn], 8)
  config = dataclasses.replace(LIMITS, max_live=3)
  done = loop.run(engine, Counted, episodes, PROMPT, config,
                  on_finish=on_finish)  # fmt: skip
  assert all(t.success for t in done)
  assert most[0] == 3


def test_a_rollout_that_is_broken_off_closes_its_environments():
  opened = []

  class Tracked(household.HouseholdEnv):
    closed = False

    def reset(self, task, seed):
      opened.append(self)
      return super().reset(task, seed)

    def close(self):
      self.closed = True

  engine = worlds.ScriptedEngine(lambda uid, turn: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    loop.run(engine, Tracked, worlds.episodes(3), PROMPT, LIMITS)
  assert len(opened) == 3
  assert all(env.closed for env in opened)


@pytest.mark.parametrize(
  ("option", "value"), [("max_live", 0), ("retries", -1)]
)
def test_limits_that_make_no_sense_are_refused(option, value):
  with pytest.raises(ValueError, match=f"rollout.{option}={value}"):
    dataclasses.replace(LIMITS, **{option: value})


def survive(episodes, *, workers, retries, step_s=0.5):
  """Plays with 10 % of steps crashing, 5 % hanging and 5 % slow."""
  recipe = base.Recipe(
    "steppo_jax.envs.workers.faults:FaultyEnv",
    {"crash": 0.1, "hang": 0.05, "slow": 0.05, "slow_s": 0.02},
  )
  limits = options.WorkerLimits(step_s=step_s, backoff_s=0.01)
  with workers_pool.Workers(recipe, workers, limits) as pool:
    done = play(episodes, pool, slots=workers, env_threads=workers,
                retries=retries)  # fmt: skip
  return done, pool


def check_accounts(episodes, done, pool):
  """Every episode once, whole or failed by a cause; every failure counted."""
  assert [t.uid for t in done] == [e.uid for e in episodes]
  found = counts.summary(done)
  failed = sum(n for k, (n, _) in found.items() if k.startswith("error/"))
  assert sum(t.error is None for t in done) + failed == len(episodes)
  assert failed == found["error_share"][0]
  retried = sum(n for k, (n, _) in found.items() if k.startswith("retried/"))
  assert retried == found["retries"][0]
  assert sum(pool.failed.values()) == failed + retried
  causes = {k.partition("/")[2] for k in found if k.startswith("retried/")}
  assert causes == {"EnvDied", "EnvTimeout"}
  return found


def lengths(trajectories):
  return np.array([len(t.steps) for t in trajectories if t.error is None])


@pytest.mark.slow
def test_faults_change_no_episode_that_is_played_again():
  episodes = worlds.episodes(12)
  calm = play(episodes, household.HouseholdEnv)
  done, pool = survive(episodes, workers=4, retries=60)
  check_accounts(episodes, done, pool)
  for a, b in zip(calm, done, strict=True):
    assert b.error is None
    assert [s.prompt_ids.tolist() for s in a.steps] == [
      s.prompt_ids.tolist() for s in b.steps
    ]
    assert (a.success, a.total_reward) == (b.success, b.total_reward)


@pytest.mark.slow
def test_500_episodes_survive_and_their_lengths_are_the_same():
  episodes = worlds.episodes(500)
  calm = lengths(play(episodes, household.HouseholdEnv))
  error = 1.96 * calm.std(ddof=1) / np.sqrt(len(calm))
  once, pool = survive(episodes, workers=8, retries=0)
  check_accounts_of_failures(episodes, once)
  # Faults by the step spare short episodes: what is left is not a sample.
  assert lengths(once).mean() < calm.mean() - error
  done, pool = survive(episodes, workers=8, retries=60)
  found = check_accounts(episodes, done, pool)
  assert found["error_share"][0] <= 5
  assert abs(lengths(done).mean() - calm.mean()) < error
  assert distance(lengths(done), calm) < 1.36 * np.sqrt(2 / len(calm))


def check_accounts_of_failures(episodes, done):
  assert [t.uid for t in done] == [e.uid for e in episodes]
  found = counts.summary(done)
  failed = found["error/EnvDied"][0] + found["error/EnvTimeout"][0]
  assert failed + sum(t.error is None for t in done) == len(episodes)


def distance(a, b):
  """Largest gap of two empirical distribution functions (Kolmogorov)."""
  at = np.union1d(a, b)
  below = lambda x: np.searchsorted(np.sort(x), at, side="right") / len(x)
  return np.abs(below(a) - below(b)).max()


def test_a_fault_outside_of_a_worker_is_raised_and_a_hang_refused():
  env = faults.FaultyEnv(crash=1.0)
  env.reset(worlds.episodes(1)[0].task, 0)
  with pytest.raises(OSError, match="a crash was drawn"):
    env.step("look")
  with pytest.raises(ValueError, match="needs a worker process"):
    faults.FaultyEnv(hang=0.1)
  with pytest.raises(ValueError, match="at most 1 together"):
    faults.FaultyEnv(crash=0.6, slow=0.6)
