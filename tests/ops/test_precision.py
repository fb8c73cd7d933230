"""float64 in, float64 out, and nothing left to implicit promotion."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transform_cases

from steppo_jax.ops import groups, ratios, returns, shaping, stats

# Its place until jax 0.8.
HOME = jax if hasattr(jax, "enable_x64") else jax.experimental


@contextlib.contextmanager
def strict(*, x64):
  with (
    HOME.enable_x64(x64),
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
  ):
    yield


@pytest.mark.parametrize("name", transform_cases.CASES)
def test_no_operation_needs_implicit_promotion(name):
  function, x = transform_cases.CASES[name]
  plain = jax.jit(function)(x)
  with strict(x64=False):
    found = jax.jit(function)(x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    found,
    plain,
  )


@pytest.mark.parametrize("name", transform_cases.CASES)
def test_what_is_given_as_float64_stays_float64(name):
  function, x = transform_cases.CASES[name]
  plain = jax.jit(function)(x)
  with HOME.enable_x64(True):
    found = jax.jit(function)(np.float64(x))
  kinds = {leaf.dtype for leaf in jax.tree.leaves(found)}
  assert kinds == {np.dtype("f8")}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    plain,
  )


f8 = lambda x: np.asarray(x, np.float64)
LAST = np.array([0, 1, 1], bool)


@pytest.mark.slow
def test_constants_of_float64_are_taken_and_make_the_result_float64():
  x = np.float32([1, 2, 3])
  with strict(x64=True):
    made = [
      returns.discounted_returns(x, LAST, x, discount=jnp.float64(0.9)),
      returns.step_gae(
        x, x, LAST, x, discount=jnp.float64(0.9), lambda_=jnp.float32(1)
      )[0],
      *shaping.belief_filter(
        x, x / 4, x, LAST, decay=jnp.float64(0.9), mix=0.5, band=0.2
      ),
      ratios.pooled_log_ratio_centered(
        x[None], np.int32([[1, 1, 2]]), jnp.float64(0.1), num_steps=3, power=0.5
      ),
    ]
  assert {one.dtype for one in made} == {np.dtype("f8")}


@pytest.mark.slow
def test_python_numbers_leave_float32_alone():
  x = np.float32([1, 2, 3])
  with strict(x64=True):
    made = [
      returns.discounted_returns(x, LAST, x, discount=0.9),
      stats.whiten(x, LAST),
      groups.group_zscore(
        x, np.int32([0, 0, 1]), LAST, num_groups=2, eps=np.float64(1e-6),
        singleton="raw",
      ),
    ]  # fmt: skip
  assert {one.dtype for one in made} == {np.dtype("f4")}


def test_float64_has_the_digits_of_float64():
  third = f8([1 / 3, 0, 0])
  with strict(x64=True):
    gain = returns.discounted_returns(
      third, np.array([1, 1, 1], bool), third * 0, discount=1.0
    )
  assert np.asarray(gain)[0] == 1 / 3
