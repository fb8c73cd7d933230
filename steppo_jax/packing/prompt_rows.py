"""What a critic on steps reads: prompts and no other tokens."""

import numpy as np

from steppo_jax.batch import PromptRows, TokenBatch
from steppo_jax.packing import rows as packing_rows


def pack(packed: packing_rows.Packed, *, pad_id: int) -> PromptRows:
  """The tokens of a batch that a value at the end of a prompt depends on.

  Values of steps lie at the last token of each prompt, and of the prompt that
  would have followed a truncated episode. Left out are the tokens that come
  before none of them: responses that no later prompt contains, which are the
  last one of an episode whose prompts extend one another, and all of them in
  the layout "rows", or where prompts are rewritten (a chat template that drops
  thoughts from the history, say). What is left moves together in fewer rows of
  the same length; parts and positions stay, and so does what each token sees.

  Args:
    packed: The batch, in any layout.
    pad_id: Token id for unused slots.

  Returns:
    Rows of the shape of the batch's, of which fewer are used or as many.
  """
  tokens, table = packed.tokens, packed.table
  parts, rows, length = tokens.tokens.shape
  ends = np.arange(parts * rows, dtype=np.int64)[:, None] * length
  ends = (tokens.subtree_end.reshape(-1, length) + ends).reshape(-1)
  index = np.arange(ends.size)
  truncated = table.truncated & table.live
  asked = np.zeros(ends.size, bool)
  asked[table.boundary[table.live]] = True
  asked[table.bootstrap_at[truncated]] = True
  needed = _within(asked, ends) > 0
  # A root continues nothing: it is its own parent, and on a slot in use.
  parent = tokens.parent.reshape(-1)
  roots = np.flatnonzero((parent == index % length) & (ends > index) & needed)
  sizes = _within(needed, ends)
  moved = np.zeros(ends.size, np.int64)
  used = np.zeros(parts, np.int32)
  for part in range(parts):
    mine = roots[roots // (rows * length) == part]
    fits = [int(n) for n in sizes[mine]]
    place = packing_rows.first_fit(fits, length)
    if max((row for row, _ in place), default=-1) >= packed.rows_used[part]:
      # First fit may take more rows for smaller trees: they stay in theirs.
      place = _in_their_rows(mine // length - part * rows, fits)
    used[part] = 1 + max((row for row, _ in place), default=-1)
    for root, (row, column) in zip(mine, place, strict=True):
      tree = root + np.flatnonzero(needed[root : ends[root]])
      start = (part * rows + row) * length + column
      moved[tree] = start + np.arange(len(tree))
  return PromptRows(
    _moved(tokens, needed, moved, sizes, pad_id),
    used,
    np.where(table.live, moved[table.boundary], 0).astype(np.int32),
    np.where(truncated, moved[table.bootstrap_at], 0).astype(np.int32),
  )


def _in_their_rows(rows: np.ndarray, sizes: list[int]) -> list[tuple[int, int]]:
  """(row, column) of trees that move together within the rows they are in."""
  free, place = {}, []
  for row, size in zip(rows.tolist(), sizes, strict=True):
    place.append((row, free.get(row, 0)))
    free[row] = place[-1][1] + size
  return place


def _within(marked: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """[n] marked tokens in the subtree of each token, itself included."""
  before = np.concatenate([[0], np.cumsum(marked)])
  return before[ends] - before[:-1]


def _moved(tokens: TokenBatch, needed, moved, sizes, pad_id) -> TokenBatch:
  """The needed tokens where they moved to, in rows that hold no action."""
  shape = tokens.tokens.shape
  old, new = np.flatnonzero(needed), moved[needed]
  column = np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape)

  def put(empty, values):
    out = np.array(empty, np.int32).reshape(-1)
    out[new] = values
    return out.reshape(shape)

  parents = old // shape[2] * shape[2] + tokens.parent.reshape(-1)[old]
  at = new % shape[2]
  return TokenBatch(
    tokens=put(np.full(shape, pad_id), tokens.tokens.reshape(-1)[old]),
    positions=put(np.zeros(shape), tokens.positions.reshape(-1)[old]),
    parent=put(column, moved[parents] % shape[2]),
    subtree_end=put(column, at + sizes[old]),
    step_ids=np.zeros(shape, np.int32),
    behaviour_logp=np.zeros(shape, np.float32),
  )
