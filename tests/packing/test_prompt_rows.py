"""What a critic on steps reads: every prompt, and no more than that."""

import functools

import hand_records
import numpy as np
import pytest
import ragged_episodes

from steppo_jax.packing import forest, options, prompt_rows
from steppo_jax.packing import rows as packing


def visible(tokens, flat):
  """What the token at a flat index sees: (id, position), in their order."""
  length = tokens.tokens.shape[-1]
  row, at = divmod(int(flat), length)
  of = lambda name: getattr(tokens, name).reshape(-1, length)[row]
  seen = (np.arange(length) <= at) & (of("subtree_end") > at)
  ids, depths = of("tokens")[seen], of("positions")[seen]
  return list(zip(ids.tolist(), depths.tolist(), strict=True))


@functools.cache
def made(layout):
  packed = ragged_episodes.packed(layout)
  return packed, prompt_rows.pack(packed, pad_id=0)


@pytest.mark.parametrize("layout", ragged_episodes.LAYOUTS)
def test_every_value_sees_what_it_saw(layout):
  packed, prompts = made(layout)
  tokens, table = prompts.tokens, packed.table
  forest.check_rows(
    tokens.parent, tokens.subtree_end, tokens.positions, tokens.step_ids
  )
  ends = table.live & table.truncated
  assert ends.any()
  assert not ends.all()
  slots = packed.tokens.tokens[0].size
  for mask, there, here in (
    (table.live, table.boundary, prompts.boundary),
    (ends, table.bootstrap_at, prompts.bootstrap_at),
  ):
    for k in np.flatnonzero(mask):
      want = visible(packed.tokens, there[k])
      assert visible(tokens, here[k]) == want
      # Depths of a path count up: every ancestor is seen.
      assert [depth for _, depth in want] == list(range(len(want)))
    # Mini-batches are whole trajectories here too.
    assert np.array_equal(there[mask] // slots, here[mask] // slots)
    assert not here[~mask].any()


@pytest.mark.parametrize("layout", ragged_episodes.LAYOUTS)
def test_nothing_else_is_there(layout):
  packed, prompts = made(layout)
  tokens, table = prompts.tokens, packed.table
  assert tokens.tokens.shape == packed.tokens.tokens.shape
  assert not tokens.step_ids.any()
  assert not tokens.behaviour_logp.any()
  column = np.arange(tokens.tokens.shape[-1])
  used = tokens.subtree_end > column
  asked = np.zeros(used.size, bool)
  asked[prompts.boundary[table.live]] = True
  asked[prompts.bootstrap_at[table.live & table.truncated]] = True
  end = tokens.subtree_end.reshape(-1) + (
    np.arange(used.size) // len(column) * len(column)
  )
  for at in np.flatnonzero(used.reshape(-1)):
    assert asked[at : end[at]].any()
  assert not tokens.tokens[~used].any()
  for part, count in enumerate(prompts.rows_used):
    assert used[part, :count].any(axis=-1).all()
    assert not used[part, count:].any()
  kept = int(used.sum())
  assert kept < packed.unique_tokens
  assert (prompts.rows_used <= packed.rows_used).all()
  if layout == "rows":
    # Several prompts share a row, where the batch has a row for each step.
    assert prompts.rows_used.sum() < packed.rows_used.sum() / 2


def test_smaller_trees_never_take_more_rows():
  # First fit packs these in 3 rows of 45, and in 4 once one is 2 tokens less.
  lengths = [5, 23, 13, 17, 10, 11, 23, 8, 7, 9, 9]
  shorter = [5, 23, 13, 17, 10, 11, 21, 8, 7, 9, 9]
  rows = lambda sizes: 1 + max(r for r, _ in packing.first_fit(sizes, 45))
  assert (rows(lengths), rows(shorter)) == (3, 4)
  made = []
  for n, (whole, prompt) in enumerate(zip(lengths, shorter, strict=True)):
    ids = np.arange(3, 3 + prompt)
    step = hand_records.step(
      ids, [9] * (whole - prompt), uid=f"t{n}", end="terminated"
    )
    made.append(hand_records.trajectory([step], uid=f"t{n}"))
  last = hand_records.step([4, 5], [], uid="z", end="terminated")
  made.append(hand_records.trajectory([last], uid="z"))
  packed = packing.pack(
    made, [0] * len(lengths) + [1], options.PackingConfig(row_length=45),
    num_parts=2, rows_multiple=3, pad_id=0,
  )  # fmt: skip
  prompts = prompt_rows.pack(packed, pad_id=0)
  assert (prompts.rows_used <= packed.rows_used).all()
  for k in np.flatnonzero(packed.table.live):
    want = visible(packed.tokens, packed.table.boundary[k])
    assert visible(prompts.tokens, prompts.boundary[k]) == want
