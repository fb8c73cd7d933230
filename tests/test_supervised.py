"""Demonstrations as step records."""

import numpy as np
import pytest
import worlds

from steppo_jax import types
from steppo_jax.learner import options
from steppo_jax.packing import options as packing_options
from steppo_jax.prompts import base as prompting
from steppo_jax.training import imitation

TURNS = [
  ("You see a desk 1.", "go to desk 1"),
  ("On the desk 1, you see a mug 1.", "take mug 1 from desk 1"),
  ("You pick up the mug 1.", "go to shelf 1"),
]


def demonstration(max_tokens):
  task = types.Task("demo", "household", "family", {})
  prompt = prompting.CompactPrompt(worlds.tokenizer())
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


def test_a_warm_up_that_never_ends_is_refused():
  with pytest.raises(ValueError, match=r"must be below training\.num_steps=2"):
    options.SupervisedConfig(num_steps=2)
