"""What estimators read: views of the batch, and two that rewrite it.

`resolve_truncation` and `resegment` are called once on the whole batch, before
estimators and objective see it.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax.algorithms import options
from steppo_jax.batch import StepTable, TokenBatch
from steppo_jax.ops import floats, groups, segments


class Extras(NamedTuple):
  """Arrays that only some methods read.

  Attributes:
    teacher_gap: [B, T] float, log-probability of each action token under a
      teacher minus that under the policy before the update.
    reference_gap: [B, T] float, log-probability of each action token under the
      policy before the update minus that under the reference policy.
  """

  teacher_gap: chex.Array | None = None
  reference_gap: chex.Array | None = None


def resolve_truncation(
  batch: TokenBatch, table: StepTable, *, bootstrap: str
) -> tuple[TokenBatch, StepTable]:
  """Decides what follows a step at which the episode was cut by a limit.

  Afterwards everything bootstraps exactly where `table.truncated` holds.

  Args:
    batch: Tokens of all rows.
    table: Steps.
    bootstrap: "value" leaves the batch as it is: the critic's value of the next
      prompt follows. "zero" treats a truncated episode as terminated, which is
      biased by -(γλ)^(T-k) γ V(s_T+1) and is what public code does.
      "drop_last" takes the last step of a truncated episode out of the batch;
      its prompt becomes the state that the step before it bootstraps from. Its
      reward goes with it.

  Returns:
    Batch and table in the same shapes.

  Raises:
    ValueError: `bootstrap` is none of the three.
  """
  if bootstrap not in options.BOOTSTRAPS:
    raise ValueError(
      f"bootstrap is one of {options.BOOTSTRAPS}, not {bootstrap!r}"
    )
  if bootstrap == "value":
    return batch, table
  if bootstrap == "zero":
    cut = jnp.zeros_like(table.truncated)
    return batch, table.replace(truncated=cut)
  dropped = table.live & table.truncated
  # A dropped step that is not the first of its episode has a step before it.
  now_last = jnp.roll(dropped, -1) & ~table.last
  kept = segments.to_tokens(~dropped, batch.step_ids)
  batch = batch.replace(step_ids=jnp.where(kept, batch.step_ids, 0))
  table = table.replace(
    live=table.live & ~dropped,
    reward=jnp.where(dropped, 0.0, table.reward),
    num_tokens=jnp.where(dropped, 0, table.num_tokens),
    last=table.last | now_last,
    truncated=now_last,
    bootstrap_at=jnp.where(
      now_last, jnp.roll(table.boundary, -1), table.bootstrap_at
    ),
  )
  return batch, table


def resegment(
  batch: TokenBatch,
  table: StepTable,
  entropy_t: chex.Array,
  *,
  share: float,
  num_steps: int,
) -> tuple[TokenBatch, StepTable]:
  """Cuts every step after its tokens of highest entropy: segments as steps.

  A segment ends at a token whose entropy is among the highest `share` of the
  batch, and at the last token of its step. Its value is read at the prefix
  before it; the reward of the step falls on its last segment. A step with an
  empty response stays one segment.

  Args:
    batch: Tokens of all rows.
    table: Steps.
    entropy_t: [B, T] float, entropy where each action token was sampled; not
      read elsewhere.
    share: Share of the action tokens that end a segment, in [0, 1].
    num_steps: Slots of the new table; S + share * B * T always suffices.

  Returns:
    Batch and table [num_steps] in which each segment is a step. Segments past
    the last slot would lose their tokens: see `num_steps`.

  Source: arXiv:2605.01327; the paper reads V before the segment, its code at
    the segment's last token: this follows the paper.
  """
  # A traced number cannot index an array of NumPy's.
  table = jax.tree.map(jnp.asarray, table)
  ids, slots = batch.step_ids, table.live.shape[0]
  ends = _entropy_ends(entropy_t, ids, share)
  index_t, found_k = _ends_before(ends, ids, slots)
  # The last token of a step always ends a segment: it may be one of `ends`.
  pieces_k = segments.step_sum(
    ends.astype(jnp.float32), ids, num_steps=slots
  ).astype(jnp.int32)
  pieces_k = pieces_k + (~found_k).astype(jnp.int32)
  pieces_k = jnp.where(table.live, jnp.maximum(pieces_k, 1), 0)
  start_k = 1 + jnp.cumsum(pieces_k) - pieces_k
  new_ids = jnp.where(ids > 0, start_k[ids] + index_t, 0).astype(jnp.int32)
  # Which step each new slot is a piece of, 0 on slots without one.
  of = jnp.zeros(num_steps, jnp.int32)
  of = of.at[jnp.where(table.live, start_k, num_steps)].set(
    jnp.arange(slots, dtype=jnp.int32), mode="drop"
  )
  slot = jnp.arange(num_steps, dtype=jnp.int32)
  live = (slot > 0) & (slot < 1 + pieces_k.sum(dtype=jnp.int32))
  of = jnp.where(live, jax.lax.cummax(of), 0)
  final = live & (slot == start_k[of] + pieces_k[of] - 1)
  first = live & (slot == start_k[of])
  inside = segments.step_boundary(new_ids, batch.parent, num_steps=num_steps)
  take = lambda x: jnp.where(live, x[of], jnp.zeros((), x.dtype))
  told = lambda x: None if x is None else take(x)
  table = table.replace(
    live=live,
    reward=jnp.where(final, table.reward[of], 0.0),
    num_tokens=segments.step_count(new_ids, num_steps=num_steps),
    last=jnp.where(live, final & table.last[of], True),
    truncated=final & table.truncated[of],
    boundary=jnp.where(first, table.boundary[of], inside),
    bootstrap_at=take(table.bootstrap_at),
    trajectory=take(table.trajectory),
    group=take(table.group),
    anchor=take(table.anchor),
    success=told(table.success),
    version=told(table.version),
  )
  return batch.replace(step_ids=new_ids), table


def acted(table: StepTable) -> chex.Array:
  """[S] bool, live steps with at least one action token."""
  return table.live & (table.num_tokens > 0)


def step_values(table: StepTable, value_bt: chex.Array) -> chex.Array:
  """[S] value at the boundary of every live step."""
  value = floats.wide(value_bt).reshape(-1)
  return jnp.where(table.live, value[table.boundary], 0.0)


def bootstrap_values(table: StepTable, value_bt: chex.Array) -> chex.Array:
  """[S] value of what would have come next where an episode was cut."""
  value = floats.wide(value_bt).reshape(-1)
  cut = table.live & table.last & table.truncated
  return jnp.where(cut, value[table.bootstrap_at], 0.0)


def trajectories(
  table: StepTable,
) -> tuple[chex.Array, chex.Array, chex.Array]:
  """Return, group and liveness of every trajectory slot, each [S]."""
  num = table.live.shape[0]
  return_n = groups.group_sum(
    table.reward, table.trajectory, table.live, num_groups=num
  )
  count_n = groups.group_count(table.trajectory, table.live, num_groups=num)
  # All steps of a trajectory hold the same group: any of them will do.
  group = jnp.where(table.live, table.group, 0).astype(jnp.int32)
  group_n = jnp.zeros(num, jnp.int32).at[table.trajectory].max(group)
  return return_n, group_n, count_n > 0


def to_steps(advantage_n: chex.Array, table: StepTable) -> chex.Array:
  """Gives the number of a trajectory to those of its steps that acted."""
  return jnp.where(acted(table), advantage_n[table.trajectory], 0.0)


def _entropy_ends(entropy_t, step_ids, share):
  """[B, T] bool, the action tokens of highest entropy, at most that share."""
  action = step_ids > 0
  entropy = floats.wide(jnp.where(action, entropy_t, -jnp.inf))
  ordered = jnp.sort(entropy.reshape(-1), descending=True)
  share = floats.constant(share, jnp.float32)
  keep = (share * action.sum().astype(jnp.float32)).astype(jnp.int32)
  # Strictly above the first one left out, so that ties stay out.
  bar = ordered[jnp.minimum(keep, ordered.size - 1)]
  return action & (entropy > bar)


def _ends_before(ends, step_ids, num_steps):
  """Segment ends of the same step before each token, and at its last one.

  Returns:
    [B, T] int32, and [S] bool: True where the last token is an end.
  """

  def body(carry, column):
    count_k, at_end_k = carry
    end, ids = column
    count = count_k[ids]
    count_k = count_k.at[ids].set(
      jnp.where(ids > 0, count + end.astype(jnp.int32), 0)
    )
    at_end_k = at_end_k.at[ids].set((ids > 0) & end)
    return (count_k, at_end_k), count

  start = jnp.zeros(num_steps, jnp.int32), jnp.zeros(num_steps, bool)
  (_, at_end_k), count = jax.lax.scan(body, start, (ends.T, step_ids.T))
  return count.T, at_end_k
