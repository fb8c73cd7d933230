"""HGPO compares the steps of a group that have the same history."""

import base_batch as base
import numpy as np
import pytest
import reference
from credit_runs import NONE, close, run
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.algorithms import estimators
from steppo_jax.algorithms import table as algorithms_table


def test_hgpo_by_hand():
  # Golden case 11. Returns at .95: A .9025 .95 1, B .025 -.5. A0 and B0 share
  # their state, A1 and B1 state and history; the others are alone.
  result = run(
    "hgpo",
    *base.records(),
    None,
    discount=0.95,
    lambda_=1.0,
    alpha=1.0,
    history=1,
  )
  close(result.advantage, [0, 0.43875, 0.725, 0, -0.43875, -0.725, 0])


def test_hgpo_weighs_longer_shared_histories_more():
  # Two groups of histories lead to one state: second steps of A, B, C.
  tokens, table = base.small(
    [1] * 6,
    reward=[0, 1, 0, 2, 0, 6],
    last=[0, 1, 0, 1, 0, 1],
    trajectory=[0, 0, 1, 1, 2, 2],
    anchor=[0, 5, 0, 5, 1, 5],
  )
  result = run("hgpo", tokens, table, None, discount=1.0, alpha=1.0, history=1)
  # The state alone: 1 2 6, mean 3. With the one before, A and B: 1 2, mean 1.5.
  # A: (2 * -2 + 3 * -.5) / 5 = -1.1; B: (2 * -1 + 3 * .5) / 5 = -.1; C: 3.
  close(result.advantage[2::2], [-1.1, -0.1, 3])


# Anchors k, l and m are 0, 1 and 2; each line is an episode.
HGPO = {
  "a_level_at_the_mean_is_left_out": (
    [[0, 1], [0, 1], [2, 1]], [3, 1, -1], [[1, 1.4], [-1, -1], [0, -2]]
  ),
  "a_first_step_has_no_history": (
    [[0, 0], [0]], [3, 1], [[2 / 3, 2 / 3], [-4 / 3]]
  ),
}  # fmt: skip


def _episodes(anchors, rewards):
  steps = [a for line in anchors for a in line]
  ends = np.cumsum([len(line) for line in anchors]) - 1
  at_end = lambda x: [
    x[list(ends).index(i)] if i in ends else 0 for i in range(len(steps))
  ]
  return base.small(
    [1] * len(steps),
    reward=at_end(rewards),
    last=at_end([1] * len(ends)),
    trajectory=np.repeat(range(len(ends)), [len(line) for line in anchors]),
    anchor=steps,
  )


@pytest.mark.parametrize("name", HGPO)
def test_hgpo_is_the_public_code(name):
  anchors, rewards, expected = HGPO[name]
  result = run(
    "hgpo", *_episodes(anchors, rewards), None,
    discount=1.0, alpha=1.0, history=1,
  )  # fmt: skip
  close(result.advantage[1:], np.concatenate(expected))


def test_hgpo_divides_by_the_deviation_and_adds_the_whole_group():
  tokens, table = _episodes([[0, 1], [0, 1], [2, 1]], [3, 1, -1])
  constants = dict(algorithms_table.ALGORITHMS["hgpo"].options) | {"eps": 0.0}
  result = run("hgpo", tokens, table, None, discount=1.0, **constants)
  # The state l: 3 1 -1, mean 1, deviation (n in it) √(8/3); with k before: 3 1,
  # ±1. First steps: k twice, ±1. Weights 2 and 3.
  z = 2 / np.sqrt(8 / 3)
  first = (2 * z + 3) / 5
  close(result.advantage[1:], [1, first, -1, -1, 0, -z])
  constants["base_group"] = True
  result = run("hgpo", tokens, table, None, discount=1.0, **constants)
  # Weight 1 for the return of the episode, z-scored like the state l.
  whole = [
    (z + 2) / 3, (z + 2 * z + 3) / 6, -1, -1, -z, (-z - 2 * z) / 3
  ]  # fmt: skip
  close(result.advantage[1:], whole)


@given(
  st.integers(0, 2**31),
  st.integers(0, 3),
  st.sampled_from([0.0, 1.0, 2.5]),
  st.sampled_from(["none", "deviation"]),
  st.booleans(),
)
def test_hgpo_is_a_slow_loop(seed, history, alpha, scale, base_group):
  rng = np.random.default_rng(seed)
  # Seven steps, so that the compiled programs are few.
  cuts = np.sort(rng.choice(np.arange(1, 7), 2, replace=False))
  anchors = [list(x) for x in np.split(rng.integers(0, 2, 7), cuts)]
  rewards = list(rng.integers(-2, 3, 3).astype(float))
  tokens, table = _episodes(anchors, rewards)
  got = estimators.hgpo(
    tokens, table, None, NONE, discount=0.9, lambda_=1.0, alpha=alpha,
    history=history, scale=scale, base_group=base_group, eps=1e-6,
  )  # fmt: skip
  expected = reference.hgpo(
    anchors, rewards, 0.9, alpha, history, scale, base_group, 1e-6
  )
  np.testing.assert_allclose(got.advantage[1:], expected, rtol=2e-5, atol=2e-5)


def test_hgpo_never_takes_another_episode_for_history():
  tokens, table = base.small(
    [1] * 5,
    reward=[0, 1, 0, 2, 6],
    last=[0, 1, 0, 1, 1],
    trajectory=[0, 0, 1, 1, 2],
    anchor=[0, 5, 0, 5, 0],
  )
  result = run("hgpo", tokens, table, None, discount=1.0, alpha=1.0, history=1)
  # Three episodes begin alike: 1 2 6, mean 3, on both levels.
  close(np.asarray(result.advantage)[[1, 3, 5]], [-2, -1, 3])
