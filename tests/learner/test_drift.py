"""How far off-policy a batch is, against loops over its steps."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppo_jax.batch import StepTable
from steppo_jax.learner import modes

STEPS = 12


def table(version_k, tokens_k, live_k):
  flags, zeros = np.zeros(STEPS, bool), np.zeros(STEPS, np.float32)
  numbers = np.zeros(STEPS, np.int32)
  names = StepTable.__dataclass_fields__
  made = {name: numbers for name in names}
  made |= {"reward": zeros, "live": np.array(live_k), "truncated": flags}
  return StepTable(**made).replace(
    version=np.array(version_k, np.int32),
    num_tokens=np.array(tokens_k, np.int32),
  )


def many(strategy):
  return st.lists(strategy, min_size=STEPS, max_size=STEPS)


@settings(max_examples=40, deadline=None)
@given(
  many(st.floats(-3, 3, width=32)), many(st.integers(2, 5)),
  many(st.integers(0, 2)), many(st.booleans()),
)  # fmt: skip
def test_what_is_told_of_ratios_is_what_a_loop_finds(
  z_k, version, tokens, live
):
  update, bound = 5, 3
  found = jax.device_get(
    modes.drift(
      np.array(z_k, np.float32), table(version, tokens, live), update, bound
    )
  )
  acting = [k for k in range(STEPS) if live[k] and tokens[k]]
  of = lambda steps: np.exp(np.float64([z_k[k] for k in steps]))
  ratios = of(acting)
  total, weight = found["policy/effective_sample_size"]
  if not acting:
    assert (total, weight) == (0, 0)
    assert found["policy/ratio_q50"] == 1
  else:
    share = ratios.sum() ** 2 / (ratios**2).sum() / len(acting)
    np.testing.assert_allclose(total / weight, share, rtol=1e-5)
    for percent in (1, 50, 99):
      np.testing.assert_allclose(
        np.log(found[f"policy/ratio_q{percent:02d}"]),
        np.quantile(np.log(ratios), percent / 100), atol=1e-5,
      )  # fmt: skip
  for age in range(bound + 1):
    old = [k for k in acting if update - version[k] == age]
    z = np.log(of(old))
    total, weight = found[f"policy/k3_staleness/{age}"]
    assert weight == len(old)
    np.testing.assert_allclose(
      total, (np.exp(z) - 1 - z).sum(), rtol=1e-4, atol=1e-5
    )
    total, weight = found[f"policy/ratio_q99_staleness/{age}"]
    assert weight == bool(old)
    if old:
      np.testing.assert_allclose(np.log(total), np.quantile(z, 0.99), atol=1e-5)
  assert f"policy/k3_staleness/{bound + 1}" not in found


@pytest.mark.parametrize(("z", "share"), [(0.0, 1.0), (90.0, 1 / STEPS)])
def test_one_step_that_weighs_all_leaves_a_sample_of_one(z, share):
  z_k = np.array([z] + [0.0] * (STEPS - 1), np.float32)
  acted = table([0] * STEPS, [1] * STEPS, [True] * STEPS)
  found = modes.drift(z_k, acted, 0, 0)
  total, weight = found["policy/effective_sample_size"]
  np.testing.assert_allclose(total / weight, share, rtol=1e-4)
  assert not any("staleness" in name for name in found)
