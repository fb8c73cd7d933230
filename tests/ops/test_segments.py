"""Step segmentation masks."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.ops import segments

seeds = st.integers(0, 2**31)


def test_runs_are_numbered_over_the_batch_in_row_order():
  mask = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  ids = segments.step_ids_from_mask(mask)
  np.testing.assert_array_equal(
    ids, [[0, 1, 1, 0, 2], [3, 3, 0, 0, 0], [0, 0, 0, 0, 0]]
  )
  assert ids.dtype == np.int32


def test_sum_mean_and_count_of_two_steps():
  ids = np.array([[0, 1, 1, 0], [2, 0, 2, 2]], np.int32)
  x = np.array([[9, 1, 2, 9], [3, 9, 4, 8]], np.float32)
  total = segments.step_sum(x, ids, num_steps=4)
  np.testing.assert_array_equal(total, [0, 3, 15, 0])
  mean = segments.step_mean(x, ids, num_steps=4)
  np.testing.assert_array_equal(mean, [0, 1.5, 5, 0])
  count = segments.step_count(ids, num_steps=4)
  np.testing.assert_array_equal(count, [0, 2, 3, 0])


def test_tokens_outside_the_actions_get_zero_whatever_slot_zero_holds():
  ids = np.array([[0, 1, 1, 0]], np.int32)
  got = segments.to_tokens(np.array([1e30, 2], np.float32), ids)
  np.testing.assert_array_equal(got, [[0, 2, 2, 0]])


def test_boundary_is_the_parent_of_the_first_action_token():
  # Row 1 is a tree: column 3 continues column 0. Step 3 is empty.
  ids = np.array([[0, 0, 1, 1], [0, 2, 2, 4]], np.int32)
  parent = np.array([[0, 0, 1, 2], [0, 0, 1, 0]], np.int32)
  got = segments.step_boundary(ids, parent, num_steps=5)
  np.testing.assert_array_equal(got, [0, 1, 4, 0, 4])


@pytest.mark.parametrize("root", [0, -1])
def test_a_step_that_starts_at_a_root_is_read_at_the_root_itself(root):
  ids = np.array([[0, 0], [1, 1]], np.int32)
  parent = np.array([[root, 0], [root, 0]], np.int32)
  got = segments.step_boundary(ids, parent, num_steps=2)
  np.testing.assert_array_equal(got, [0, 2])


def test_an_all_pad_batch_gives_zeros():
  ids, x = np.zeros((2, 3), np.int32), np.full((2, 3), 1e30, np.float32)
  for got in (
    segments.step_sum(x, ids, num_steps=4),
    segments.step_mean(x, ids, num_steps=4),
    segments.step_boundary(ids, ids, num_steps=4),
  ):
    np.testing.assert_array_equal(got, [0, 0, 0, 0])


@given(seeds)
def test_sums_and_boundaries_equal_a_loop(seed):
  batch = reference.ragged(seed)
  rng = np.random.default_rng(seed)
  x = rng.normal(size=batch.step_ids.shape).astype(np.float32)
  total = segments.step_sum(x, batch.step_ids, num_steps=9)
  mean = segments.step_mean(x, batch.step_ids, num_steps=9)
  at = segments.step_boundary(batch.step_ids, batch.parent, num_steps=9)
  for k in range(1, 9):
    inside = x[batch.step_ids == k].astype(np.float64)
    np.testing.assert_allclose(total[k], inside.sum(), atol=1e-6)
    if len(inside):
      np.testing.assert_allclose(mean[k], inside.mean(), atol=1e-6)
      assert at[k] == batch.boundary[k]
    else:
      assert mean[k] == at[k] == 0
  assert total[0] == mean[0] == at[0] == 0


@given(seeds)
def test_numbering_a_mask_and_reading_it_back_gives_the_mask(seed):
  mask = np.random.default_rng(seed).uniform(size=(6, 10)) < 0.5
  ids = np.asarray(segments.step_ids_from_mask(mask))
  np.testing.assert_array_equal(ids > 0, mask)
  for number in range(1, ids.max(initial=0) + 1):
    rows, columns = np.where(ids == number)
    assert len(set(rows)) == 1
    np.testing.assert_array_equal(np.diff(columns), 1)


def test_wrong_shapes_and_types_are_refused():
  ids = np.zeros((2, 3), np.int32)
  with pytest.raises(AssertionError):
    segments.step_sum(np.zeros((3, 2), np.float32), ids, num_steps=2)
  with pytest.raises(AssertionError):
    segments.step_sum(np.zeros((2, 3), np.int32), ids, num_steps=2)
  with pytest.raises(AssertionError):
    segments.step_ids_from_mask(ids)
  with pytest.raises(AssertionError):
    segments.to_tokens(np.zeros(3, np.float32), np.zeros((2, 3), np.float32))
