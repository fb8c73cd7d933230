"""Demonstrations as step records."""

import numpy as np
import pytest
import worlds

from steppo_jax import batch, types
from steppo_jax.learner import options, supervised
from steppo_jax.packing import options as packing_options
from steppo_jax.prompts import base as prompt_base
from steppo_jax.training import imitation

TURNS = [
  (types.Turn("You see a desk 1."), "go to desk 1"),
  (types.Turn("On the desk 1, you see a mug 1."), "take mug 1 from desk 1"),
  (types.Turn("You pick up the mug 1."), "go to shelf 1"),
]


def demonstration(max_tokens):
  task = types.Task("demo", "household", "family", {})
  prompt = prompt_base.CompactPrompt(worlds.tokenizer())
  return imitation.demonstration(task, TURNS, prompt, max_tokens=max_tokens)


def length(step):
  return len(step.prompt_ids) + len(step.response_ids)


def test_a_demonstration_that_fits_is_whole():
  whole = demonstration(500)
  assert [s.step_index for s in whole.steps] == [0, 1, 2]
  assert whole.success
  assert whole.steps[-1].terminated
  assert [s.reward for s in whole.steps] == [0.0, 0.0, 1.0]
  # Its exact length is enough, one token less is not.
  limit = length(whole.steps[-1])
  assert len(demonstration(limit).steps) == 3
  assert len(demonstration(limit - 1).steps) == 2


def test_a_demonstration_that_is_too_long_is_truncated_not_ended():
  whole = demonstration(500)
  limit = length(whole.steps[-1]) - 1
  cut = demonstration(limit)
  assert not cut.success
  assert cut.steps[-1].truncated
  assert not cut.steps[-1].terminated
  assert sum(s.reward for s in cut.steps) == 0
  assert len(cut.final_prompt_ids) <= limit
  rows = imitation.pack_rows(
    [cut], packing_options.PackingConfig(row_length=limit), pad_id=0
  )
  sampled = sum(len(s.response_ids) for s in cut.steps)
  assert np.sum(rows.step_ids > 0) == sampled


def test_a_demonstration_whose_first_step_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"demo.*longer than 3"):
    demonstration(3)


def token_rows(count):
  """Rows of one token each, which is the number of the row."""
  ids = np.arange(count, dtype=np.int32)[:, None]
  names = ("positions", "parent", "subtree_end", "step_ids")
  return batch.TokenBatch(
    tokens=ids,
    behaviour_logp=np.zeros(ids.shape, np.float32),
    **dict.fromkeys(names, np.zeros_like(ids)),
  )


def test_fewer_rows_than_a_batch_are_refused():
  config = options.SupervisedConfig(rows_per_step=4)
  said = r"3 rows .* fewer than training\.rows_per_step=4"
  # At the call: nothing is asked of the batches before the model is made.
  with pytest.raises(ValueError, match=said):
    supervised.batches(token_rows(3), config, 0)


def test_demonstrations_of_which_none_is_left_are_refused():
  rows = imitation.pack_rows(
    [], packing_options.PackingConfig(row_length=32), pad_id=0
  )
  with pytest.raises(ValueError, match=r"0 rows of demonstrations are fewer"):
    supervised.batches(rows, options.SupervisedConfig(), 0)


def test_batches_go_on_in_another_order_and_leave_out_what_fills_none():
  config = options.SupervisedConfig(rows_per_step=2)
  found = supervised.batches(token_rows(5), config, 0)
  taken = [next(found).tokens[:, 0].tolist() for _ in range(4)]
  # Two batches of two rows an epoch; no row twice in one.
  assert len({*taken[0], *taken[1]}) == len({*taken[2], *taken[3]}) == 4
  assert taken[:2] != taken[2:]


def test_a_warm_up_that_never_ends_is_refused():
  with pytest.raises(ValueError, match=r"must be below training\.num_steps=2"):
    options.SupervisedConfig(num_steps=2)
