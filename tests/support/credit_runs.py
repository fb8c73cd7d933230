"""Runs estimators, each compiled once for its constants."""

import functools

import jax
import numpy as np
from hypothesis import strategies as st

from steppo_jax.algorithms import estimators

seeds = st.integers(0, 2**31)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)
f32 = lambda x: np.asarray(x, np.float32)
NONE = estimators.Extras()


@functools.cache
def compiled(name, **constants):
  return jax.jit(functools.partial(getattr(estimators, name), **constants))


def run(name, tokens, table, value, **constants):
  constants = {"discount": 0.9, "lambda_": 0.8, **constants}
  return compiled(name, **constants)(tokens, table, value, NONE)
