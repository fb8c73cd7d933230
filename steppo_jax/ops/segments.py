"""Step segmentation masks: reductions over steps, broadcasts to tokens.

`step_ids [B, T]` names the step whose action each token belongs to. Slot 0 is a
real slot that stands for no step: prompts, observations and padding point
there, so that every gather and scatter is in range, and it is 0 in every
result.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats


def check_step_ids(step_ids: chex.Array, *others: chex.Array) -> None:
  """Raises AssertionError unless `step_ids` is int [B, T] like `others`."""
  chex.assert_rank(step_ids, 2)
  chex.assert_type(step_ids, int)
  chex.assert_equal_shape([step_ids, *others])


def step_ids_from_mask(action_mask: chex.Array) -> chex.Array:
  """Numbers the maximal runs of sampled tokens.

  Runs are numbered 1, 2, 3, ... over the whole batch in row order. A run never
  crosses rows. Where a response holds tokens that the policy did not sample,
  its parts become separate steps: write the ids by hand in that case.

  Args:
    action_mask: [B, T] bool, True on tokens that the policy sampled.

  Returns:
    [B, T] int32 step ids, 0 outside the runs.

  Raises:
    AssertionError: the mask is not boolean or not two-dimensional.
  """
  action_mask = jnp.asarray(action_mask)
  chex.assert_rank(action_mask, 2)
  chex.assert_type(action_mask, bool)
  before = jnp.pad(action_mask, ((0, 0), (1, 0)))[:, :-1]
  starts = (action_mask & ~before).astype(jnp.int32)
  number = jnp.cumsum(starts.reshape(-1)).reshape(starts.shape)
  return jnp.where(action_mask, number, 0).astype(jnp.int32)


def step_sum(
  x_t: chex.Array, step_ids: chex.Array, *, num_steps: int
) -> chex.Array:
  """Sum over the action tokens of each step.

  Args:
    x_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.

  Returns:
    [S], float32 or float64; 0 for slot 0 and for steps without action tokens.

  Raises:
    AssertionError: the shapes differ or `x_t` is not floating point.
    ValueError: `step_ids` holds a number that `num_steps` leaves no room for.
      Traced ids are not known: tokens of such steps are then left out.
  """
  x_t, step_ids = jnp.asarray(x_t), jnp.asarray(step_ids)
  check_step_ids(step_ids, x_t)
  chex.assert_type(x_t, float)
  floats.check_below(step_ids, num_steps, "step_ids", "num_steps")
  # The dump slot receives zeros only, so poison there reaches nothing.
  return floats.segment_sum(x_t, step_ids, step_ids > 0, num_segments=num_steps)


def step_count(step_ids: chex.Array, *, num_steps: int) -> chex.Array:
  """Number of action tokens of each step, L in the formulas.

  Args:
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.

  Returns:
    [S] int32; 0 for slot 0 and for steps without action tokens.

  Raises:
    AssertionError: `step_ids` is not a two-dimensional integer array.
  """
  step_ids = jnp.asarray(step_ids)
  check_step_ids(step_ids)
  floats.check_below(step_ids, num_steps, "step_ids", "num_steps")
  return jax.ops.segment_sum(
    (step_ids > 0).astype(jnp.int32).reshape(-1),
    step_ids.reshape(-1),
    num_segments=num_steps,
  )


def step_mean(
  x_t: chex.Array, step_ids: chex.Array, *, num_steps: int
) -> chex.Array:
  """Mean over the action tokens of each step.

  Args:
    x_t: [B, T] float; not read where `step_ids` is 0.
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.

  Returns:
    [S], float32 or float64; 0 for slot 0 and for steps without action tokens.

  Raises:
    AssertionError: the shapes differ or `x_t` is not floating point.
    ValueError: `step_ids` holds a number that `num_steps` leaves no room for.
      Traced ids are not known: tokens of such steps are then left out.
  """
  total = step_sum(x_t, step_ids, num_steps=num_steps)
  count = step_count(step_ids, num_steps=num_steps)
  return total / jnp.maximum(count, 1).astype(total.dtype)


def to_tokens(x_k: chex.Array, step_ids: chex.Array) -> chex.Array:
  """Gives every action token the number of its step.

  Args:
    x_k: [S]; slot 0 is not read.
    step_ids: [B, T] int32.

  Returns:
    [B, T] in the dtype of `x_k`, 0 outside the actions.

  Raises:
    AssertionError: the ranks are not 1 and 2.
    ValueError: `step_ids` holds a number that `x_k` has no slot for. Traced ids
      are not known: tokens of such steps then get the number of the last one.
  """
  x_k, step_ids = jnp.asarray(x_k), jnp.asarray(step_ids)
  chex.assert_rank(x_k, 1)
  check_step_ids(step_ids)
  floats.check_below(step_ids, x_k.shape[0], "step_ids", "the number of steps")
  # Written out by a scatter first. XLA's CPU backend fuses everything else that
  # made `x_k` into the gather and computes it once a token, not once a step.
  slots = jnp.arange(x_k.shape[0], dtype=jnp.int32)
  x_k = jnp.zeros_like(x_k).at[slots].set(x_k, unique_indices=True)
  tokens = x_k.at[step_ids].get(mode="clip", wrap_negative_indices=False)
  return jnp.where(step_ids > 0, tokens, jnp.zeros((), x_k.dtype))


def centered(
  x_t: chex.Array, step_ids: chex.Array, *, num_steps: int
) -> chex.Array:
  """Distance of each action token from the mean of its step, 0 elsewhere."""
  mean_t = to_tokens(step_mean(x_t, step_ids, num_steps=num_steps), step_ids)
  return jnp.where(jnp.asarray(step_ids) > 0, x_t - mean_t, 0.0)


def first_token(step_ids: chex.Array, *, num_steps: int) -> chex.Array:
  """Flat index (row * T + column) of each step's first action token.

  Args:
    step_ids: [B, T] int32.
    num_steps: S, slot 0 included.

  Returns:
    [S] int32; 0 for slot 0 and for steps without action tokens.

  Raises:
    AssertionError: `step_ids` is not a two-dimensional integer array.
  """
  step_ids = jnp.asarray(step_ids)
  check_step_ids(step_ids)
  index = jnp.arange(step_ids.size, dtype=jnp.int32)
  first = jax.ops.segment_min(
    index, step_ids.reshape(-1), num_segments=num_steps
  )
  nonempty = step_count(step_ids, num_steps=num_steps) > 0
  return jnp.where(nonempty, first, 0)


def step_boundary(
  step_ids: chex.Array, parent: chex.Array, *, num_steps: int
) -> chex.Array:
  """Flat index of the last prompt token before each step, where V is read.

  Args:
    step_ids: [B, T] int32.
    parent: [B, T] int32 in-row index of the token that each token continues.
      A root is its own parent; a negative number also marks a root.
    num_steps: S, slot 0 included.

  Returns:
    [S] int32 row * T + parent of the step's first action token; 0 for slot 0
    and for steps without action tokens.

  Raises:
    AssertionError: the shapes differ or the arrays are not integer.
  """
  step_ids, parent = jnp.asarray(step_ids), jnp.asarray(parent)
  check_step_ids(step_ids, parent)
  chex.assert_type(parent, int)
  first = first_token(step_ids, num_steps=num_steps)
  at_parent = flat_parent(parent).reshape(-1)[first]
  nonempty = step_count(step_ids, num_steps=num_steps) > 0
  return jnp.where(nonempty, at_parent, 0)


def flat_parent(parent: chex.Array) -> chex.Array:
  """Flat index (row * T + column) of the parent of every token.

  Args:
    parent: [B, T] int32 in-row index; a negative number marks a root.

  Returns:
    [B, T] int32; a root is its own parent.
  """
  rows, columns = parent.shape
  own = jnp.arange(columns, dtype=jnp.int32)[None, :]
  start = (jnp.arange(rows, dtype=jnp.int32) * columns)[:, None]
  return start + jnp.where(parent < 0, own, parent).astype(jnp.int32)
