"""The order in which tokens of a step come to lie side by side."""

import functools

import jax
import numpy as np
import pytest

from steppo_jax.ops import runs


@pytest.mark.slow
def test_rows_too_long_for_one_key_are_put_in_order_too():
  # A key holds two column numbers in 32 bits: up to 65,536 columns.
  for columns in (2**16, 2**16 + 1):
    ids = np.zeros((1, columns), np.int32)
    ids[0, [5, 9, 11, columns - 1]] = [2, 1, 2, 1]
    order = jax.jit(functools.partial(runs.order, num_steps=3))(ids)[0]
    np.testing.assert_array_equal(order[:4], [5, 11, 9, columns - 1])
    np.testing.assert_array_equal(np.sort(order), np.arange(columns))
