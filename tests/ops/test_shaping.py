"""Re-weighting changes how much credit, never its sign."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import shaping

seeds = st.integers(0, 2**31)
f32 = lambda x: np.asarray(x, np.float32)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
IDS = np.array([[0, 1, 1, 1], [2, 2, 0, 3]], np.int32)


def _shaped(seed, poison=0.0):
  rng = np.random.default_rng(seed)
  advantage, gap = f32(rng.normal(size=(2, 2, 4)))
  gap = np.where(IDS > 0, gap, poison).astype(np.float32)
  band = {"low": 0.8, "high": 1.2, "mix": 0.7}
  return advantage, {
    "band": shaping.reweight_band(advantage, gap, IDS > 0, **band),
    "sigmoid": shaping.reweight_sigmoid(advantage, gap, IDS > 0, **band),
    "token": shaping.token_weight(advantage, gap, IDS, num_steps=4, mix=0.7),
  }


@given(seeds)
def test_no_sign_changes_and_nothing_moves_outside_the_actions(seed):
  advantage, shaped = _shaped(seed)
  for x in shaped.values():
    assert (np.asarray(x) * advantage >= 0).all()
    np.testing.assert_array_equal(x[IDS == 0], advantage[IDS == 0])
  _, poisoned = _shaped(seed, poison=1e30)
  for name, x in poisoned.items():
    np.testing.assert_array_equal(x, shaped[name])


def test_token_weights_keep_the_credit_of_a_step():
  # Weights 1 0 2 have mean 1: 3 3 3 becomes 3 0 6, and half of it is mixed in.
  advantage = np.full((2, 4), 3, np.float32)
  weight = f32([[9, 1, 0, 2], [0, 0, 9, 5]])
  got = shaping.token_weight(advantage, weight, IDS, num_steps=4, mix=0.5)
  close(got, [[3, 3, 1.5, 4.5], [3, 3, 3, 3]])


def test_overlong_penalty_by_hand():
  got = shaping.overlong_penalty(
    np.array([79, 85, 100, 200]), max_length=100, cache=20
  )
  close(got, [0, -0.25, -1, -1])
