"""Few programs serve every length, and blocks of the cache change no answer."""

import dataclasses
import itertools

import jax
import numpy as np
import plays
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax import types
from steppo_jax.models import transformer
from steppo_jax.sampler import cache
from steppo_jax.sampler import sizes as sizes_lib

LENGTHS = st.lists(st.integers(1, 900), min_size=1, max_size=6, unique=True)


@given(st.integers(1, 500), st.integers(1, 40_000), LENGTHS)
def test_there_are_eight_programs_at_most(slots, context, lengths):
  lengths = tuple(sorted(lengths))
  prefill, rows = sizes_lib.shapes(slots, context, lengths)
  assert len(prefill) + len(rows) + 1 <= sizes_lib.MOST
  assert rows[-1] == slots
  assert set(prefill) <= {*lengths, sizes_lib.LONG}


@given(st.integers(1, 2000), LENGTHS)
def test_runs_hold_their_tokens_and_only_the_last_is_padded(length, sizes):
  sizes = tuple(sorted(sizes))
  runs = sizes_lib.cut(length, sizes)
  assert set(runs) <= set(sizes)
  assert list(runs) == sorted(runs, reverse=True)
  assert sum(runs[:-1]) < length <= sum(runs)


def test_runs_are_those_that_cost_least():
  sizes = (3, 5, 16)

  def cost(runs):
    return sum(runs) + sizes_lib.CALL * len(runs)

  for length in range(1, 40):
    least = min(
      cost(runs)
      for count in range(1, 5)
      for runs in itertools.combinations_with_replacement(sizes, count)
      if sum(runs) >= length
    )
    assert cost(sizes_lib.cut(length, sizes)) == least


@pytest.mark.slow
def test_programs_are_compiled_when_needed_or_all_side_by_side():
  made = plays.make(worlds.model(), worlds.policy(), context=1100)
  request = types.Request("a", np.arange(3, 9, dtype=np.int32), (0,), 2, 1.0)
  made.generate([request])
  assert made.compiles == 2
  made.release("a")
  made.warm_up()
  assert made.compiles == sizes_lib.MOST
  plays.play(made)
  assert made.compiles == sizes_lib.MOST


@pytest.mark.slow
def test_blocks_and_layout_of_the_cache_change_no_answer(monkeypatch):
  model = dataclasses.replace(worlds.model(), num_layers=2, windows=(7, 0))
  params = jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))
  found = []
  # One block; several; several as they lie on an accelerator.
  for block, context, by_head in (
    (128, 128, True), (16, 123, True), (16, 124, False)
  ):  # fmt: skip
    monkeypatch.setattr(cache, "BLOCKS", (block,))
    monkeypatch.setattr(cache, "by_head", lambda by_head=by_head: by_head)
    found.append(
      plays.play(plays.make(model, params, context=context, lengths=(16,)))
    )
  for x, y, z in zip(*found, strict=True):
    for other in (y, z):
      np.testing.assert_array_equal(x.response_ids, other.response_ids)
      np.testing.assert_allclose(
        x.behaviour_logp, other.behaviour_logp, atol=1e-5
      )
