"""The study of estimators in the key-and-door world, with smaller settings."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments" / "chain"


def play(door, state, way):
  """Next state or "door" or "pit", by the rules and not by the tables."""
  key, place = divmod(state, door.size)
  place += 1 if way else -1
  if place < 0:
    return "pit"
  if place == door.size:
    if key:
      return "door"
    place = door.size - 1
  return place + door.size * (key or place == 1)


def brute(door, chances, state, action, steps, discount):
  """Value of an action by adding up every course of the steps that are left."""
  total = 0.0
  for slips in itertools.product((0, 1), repeat=steps):
    for later in itertools.product((0, 1), repeat=steps - 1):
      here, weight, reward = state, 1.0, 0.0
      for age, (slip, way) in enumerate(
        zip(slips, (action, *later), strict=True)
      ):
        weight *= chances[here, way] if age else 1.0
        weight *= door.slip if slip else 1 - door.slip
        here = play(door, here, way ^ slip)
        if isinstance(here, str):
          reward = discount**age * (here == "door")
          # What would follow an end adds up to 1: count it once.
          rest = steps - 1 - age
          weight *= not any(slips[steps - rest :] + later[age:])
          break
      total += weight * reward
  return total


def test_the_chance_of_success_is_that_of_all_courses_added_up(load):
  door_lib = load("door")
  door = door_lib.Door(size=3, slip=0.2, limit=5)
  chances = np.asarray(door_lib.policy(door, 0.7))
  found = door_lib.true_advantages(door, jnp.asarray(chances), 0.9)["success"]
  for time in range(door.limit):
    for state in range(door.num_states):
      follows = [
        brute(door, chances, state, a, door.limit - time, 1.0) for a in (0, 1)
      ]
      value = chances[state] @ follows
      np.testing.assert_allclose(
        found[time, state], np.array(follows) - value, atol=1e-6
      )


def test_the_discounted_value_is_that_of_long_courses_added_up(load):
  door_lib = load("door")
  door = door_lib.Door(size=3, slip=0.2)
  chances = np.asarray(door_lib.policy(door, 0.7))
  # γ 0.2: what is past 7 steps is below 0.2^7 = 1.3e-5.
  value, follows = door_lib.values(
    door, jnp.asarray(chances), discount=0.2, clock="step"
  )
  for state in (2, 3, 5):
    expected = [brute(door, chances, state, a, 7, 0.2) for a in (0, 1)]
    np.testing.assert_allclose(follows[state], expected, atol=2e-5)
    np.testing.assert_allclose(
      value[state], chances[state] @ expected, atol=2e-5
    )


def test_a_token_value_is_a_step_value_that_waits_for_the_last_token(load):
  door_lib = load("door")
  door = door_lib.Door(lengths=(3, 3))
  chances = door_lib.policy(door, 0.7)
  # Two tokens pass before the last one of each action.
  token, _ = door_lib.values(door, chances, discount=0.9, clock="token")
  step, _ = door_lib.values(door, chances, discount=0.9**3, clock="step")
  np.testing.assert_allclose(token, 0.9**2 * step, rtol=1e-5)


@pytest.mark.slow
def test_visits_are_those_of_sampled_episodes(load):
  door_lib = load("door")
  door = door_lib.Door(limit=6)
  chances = door_lib.policy(door, 0.6)
  steps = jax.tree.map(
    np.asarray,
    door_lib.sample(door, chances, jax.random.key(0), episodes=4000, group=8),
  )
  live = steps.live[1:].reshape(4000, 6)
  state = steps.state[1:].reshape(4000, 6)
  expected = np.asarray(door_lib.visits(door, chances))
  for time in range(6):
    share = np.bincount(state[:, time][live[:, time]], minlength=12) / 4000
    # 500 groups share their start: deviation of a share of 1/4 is 0.02.
    np.testing.assert_allclose(share, expected[time], atol=0.06)
  # Episodes of a group begin in one place.
  assert (state[:, 0].reshape(-1, 8) == state[::8, :1]).all()


@pytest.mark.slow
def test_only_an_exact_critic_and_the_right_clock_are_unbiased(load):
  study = load("estimators_study")
  made = [
    study.Variant("steppo", 0.95, 0.9),
    study.Variant("steppo", 0.95, 0.9, "error 2"),
    study.Variant("steppo", 0.95, 0.9, "exact", "zero"),
    study.Variant("ppo", 0.95, 0.9),
    study.Variant("grpo"),
  ]
  lines = study.study(
    made, seeds=(0,), episodes=(64,), total=2048, policies={"early": 0.6}
  )
  exact, wrong, zero, token, grpo = lines
  name = "bias/discounted"
  assert exact[name] < 0.05
  assert min(x[name] for x in (wrong, zero, token, grpo)) > 0.15
  slope = "gradient/discounted"
  assert exact[slope] > max(x[slope] for x in (wrong, zero, token, grpo))
  noise = "variance/discounted"
  assert exact[noise] < grpo[noise]


def test_bias_and_variance_of_numbers_added_up_by_hand(load):
  study = load("estimators_study")
  # Cell 0: estimates 1, 3; cell 1: -2, -2. Means 2 and -2, within 2 and 0.
  # Power: (4 - 2 / 2 + 4) / 2 = 3.5; truth (1, -1): aim 1, match 2, and no
  # power below match² / aim = 4.
  cells = np.array([[2, 2], [4, -4], [10, 8]], np.float32)
  bias, variance = study.bias_and_variance(cells, np.array([1.0, -1.0]))
  assert bias == pytest.approx(0.0)
  assert variance == pytest.approx(1.0 / 4)
  # Truth (1, 0): aim 1/2, match 1; along it is 1 / (4 · 1/2) with power 3.5.
  bias, variance = study.bias_and_variance(cells, np.array([1.0, 0.0]))
  assert bias == pytest.approx(1 - 1 / (3.5 * 0.5))
  assert variance == pytest.approx(1.0 * 0.5 / 1)


def test_every_estimator_without_a_teacher_is_studied(load):
  study = load("estimators_study")
  known = study.steppo_jax.ALGORITHMS.values()
  free = {row.estimator for row in known if "teacher" not in row.needs}
  # It credits each step by itself for being right, and no step of the chain is.
  free.remove("sapo_rec")
  assert {v.row.estimator for v in study.variants()} == free
  labels = [v.label for v in study.variants()]
  assert len(labels) == len(set(labels))
  assert set(study.study_report.DRAWN) <= set(labels)
