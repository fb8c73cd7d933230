"""Group statistics: episodes of one task, or steps of one state, compared.

A member is an entry of `x_n` where `live_n` holds; `group_n` numbers its group,
0 .. num_groups-1. A group of one, and a group whose members are equal within
float32, gives exactly 0. A member that is not finite makes all of its group NaN
or infinite, and no other group.
"""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats, stats


def _check(x_n, group_n, live_n, num_groups):
  x_n, group_n, live_n = map(jnp.asarray, (x_n, group_n, live_n))
  chex.assert_rank(x_n, 1)
  chex.assert_equal_shape([x_n, group_n, live_n])
  chex.assert_type([x_n, group_n, live_n], [float, int, bool])
  _check_live(group_n, live_n, num_groups, "group_n", "num_groups")
  return floats.wide(jnp.where(live_n, x_n, 0)), group_n, live_n


def _check_live(ids, live, limit, name, of):
  """Refuses known numbers that are out of range and not masked."""
  if not isinstance(live, jax.core.Tracer):
    floats.check_below(jnp.where(live, ids, 0), limit, name, of)


def group_sum(
  x_n: chex.Array, group_n: chex.Array, live_n: chex.Array, *, num_groups: int
) -> chex.Array:
  """Sum over the members of each group.

  Args:
    x_n: [N] float; not read where `live_n` is False.
    group_n: [N] int32.
    live_n: [N] bool.
    num_groups: G.

  Returns:
    [G] float32, 0 for an empty group.

  Raises:
    AssertionError: the shapes differ, or `x_n` is not floating point.
    ValueError: `group_n` holds a number that `num_groups` leaves no room for.
      Traced numbers are not known: such members are then left out.
  """
  x_n, group_n, live_n = _check(x_n, group_n, live_n, num_groups)
  return floats.segment_sum(x_n, group_n, live_n, num_segments=num_groups)


def group_count(
  group_n: chex.Array, live_n: chex.Array, *, num_groups: int
) -> chex.Array:
  """Number of members of each group, [G] float32."""
  group_n, live_n = jnp.asarray(group_n), jnp.asarray(live_n)
  chex.assert_equal_shape([group_n, live_n])
  chex.assert_type([group_n, live_n], [int, bool])
  _check_live(group_n, live_n, num_groups, "group_n", "num_groups")
  # Counted in whole numbers: float32 would stop at 2²⁴.
  return jax.ops.segment_sum(
    live_n.astype(jnp.int32), group_n, num_segments=num_groups
  ).astype(jnp.float32)


def group_mean(
  x_n: chex.Array, group_n: chex.Array, live_n: chex.Array, *, num_groups: int
) -> chex.Array:
  """Mean over the members of each group, [G] float32, 0 for an empty group."""
  total = group_sum(x_n, group_n, live_n, num_groups=num_groups)
  count = group_count(group_n, live_n, num_groups=num_groups)
  return total / jnp.maximum(count, 1).astype(total.dtype)


def group_spread(
  x_n: chex.Array, group_n: chex.Array, live_n: chex.Array, *, num_groups: int
) -> chex.Array:
  """Whether the members of each group differ by more than float32 noise.

  With success as `x_n` this is the filter of DAPO: a group is kept if it has
  neither no success nor nothing else.

  Args:
    x_n: [N] float; not read where `live_n` is False.
    group_n: [N] int32.
    live_n: [N] bool.
    num_groups: G.

  Returns:
    [G] bool; False for empty groups and groups of one. True for a group with a
    member that is not finite, which a filter is not to hide.

  Raises:
    AssertionError: the shapes differ, or `x_n` is not floating point.
  """
  x_n, group_n, live_n = _check(x_n, group_n, live_n, num_groups)
  low_n, high_n = stats.bounds(x_n, live_n)
  low = jax.ops.segment_min(low_n, group_n, num_segments=num_groups)
  high = jax.ops.segment_max(high_n, group_n, num_segments=num_groups)
  return ~stats.nearly_equal(low, high)


def group_center(
  x_n: chex.Array, group_n: chex.Array, live_n: chex.Array, *, num_groups: int
) -> chex.Array:
  """Distance of each member from the mean of its group.

    xₙ - mean_g

  In a group of two it is half the difference of the two, with either sign. With
  everything in one group it is the distance from the mean of the batch, the
  simplest baseline of REINFORCE.

  Args:
    x_n: [N] float; not read where `live_n` is False.
    group_n: [N] int32.
    live_n: [N] bool.
    num_groups: G.

  Returns:
    [N] float32; 0 where not live, in groups of one and in equal groups.

  Raises:
    AssertionError: the shapes differ, or `x_n` is not floating point.

  Source: Liu et al. 2025, Dr. GRPO, arXiv:2503.20783.
  """
  x_n, group_n, live_n = _check(x_n, group_n, live_n, num_groups)
  mean_g = group_mean(x_n, group_n, live_n, num_groups=num_groups)
  spread_g = group_spread(x_n, group_n, live_n, num_groups=num_groups)
  keep_n = live_n & spread_g[group_n]
  return jnp.where(keep_n, x_n - mean_g[group_n], 0.0)


def group_zscore(
  x_n: chex.Array,
  group_n: chex.Array,
  live_n: chex.Array,
  *,
  num_groups: int,
  eps: chex.Numeric,
  singleton: str,
) -> chex.Array:
  """Distance from the mean of the group in standard deviations.

    (xₙ - mean_g) / (std_g + eps), with n - 1 in the deviation

  In a group of two it is ±1/√2 (for eps = 0), however much the two differ: the
  deviation takes the size of the difference away. With everything in one group
  and eps = 1e-8 it is `stats.whiten`. Without the division it is
  `group_center`.

  Args:
    x_n: [N] float; not read where `live_n` is False.
    group_n: [N] int32.
    live_n: [N] bool.
    num_groups: G.
    eps: Added to the deviation, in units of `x_n`.
    singleton: "zero" gives 0 to the member of a group of one; "raw" gives it
      xₙ / (1 + eps), as public code does.

  Returns:
    [N] float32; 0 where not live and in equal groups.

  Raises:
    AssertionError: the shapes differ, or `x_n` is not floating point.
    ValueError: `singleton` is neither "zero" nor "raw".

  Source: Shao et al. 2024, GRPO, arXiv:2402.03300.
  """
  if singleton not in ("zero", "raw"):
    raise ValueError(f"singleton is 'zero' or 'raw', not {singleton!r}")
  x_n, group_n, live_n = _check(x_n, group_n, live_n, num_groups)
  centered_n = group_center(x_n, group_n, live_n, num_groups=num_groups)
  square_g = group_sum(
    jnp.square(centered_n), group_n, live_n, num_groups=num_groups
  )
  count_g = group_count(group_n, live_n, num_groups=num_groups)
  variance_g = square_g / jnp.maximum(count_g - 1, 1).astype(square_g.dtype)
  eps = floats.constant(eps, square_g.dtype)
  result_n = centered_n / (stats.deviation(variance_g)[group_n] + eps)
  result_n = jnp.where(live_n, result_n, 0.0)
  if singleton == "raw":
    alone_n = live_n & (count_g[group_n] == 1)
    result_n = jnp.where(alone_n, x_n / (1 + eps), result_n)
  return result_n


def group_leave_one_out(
  x_n: chex.Array, group_n: chex.Array, live_n: chex.Array, *, num_groups: int
) -> chex.Array:
  """Distance of each member from the mean of the others of its group.

    xₙ - (Σ_g x - xₙ) / (n_g - 1) = n_g / (n_g - 1) (xₙ - mean_g)

  In a group of two it is the difference from the other, x₁ - x₂ and x₂ - x₁,
  twice what `group_center` gives; in large groups the two agree.

  Args:
    x_n: [N] float; not read where `live_n` is False.
    group_n: [N] int32.
    live_n: [N] bool.
    num_groups: G.

  Returns:
    [N] float32; 0 where not live, in groups of one and in equal groups.

  Raises:
    AssertionError: the shapes differ, or `x_n` is not floating point.

  Source: Ahmadian et al. 2024, RLOO, arXiv:2402.14740.
  """
  centered_n = group_center(x_n, group_n, live_n, num_groups=num_groups)
  count_n = group_count(group_n, live_n, num_groups=num_groups)[group_n]
  count_n = count_n.astype(centered_n.dtype)
  return centered_n * count_n / jnp.maximum(count_n - 1, 1)


def population_zscore(
  x_n: chex.Array,
  group_n: chex.Array,
  live_n: chex.Array,
  *,
  num_groups: int,
  eps: chex.Numeric,
) -> chex.Array:
  """Distance from the mean of the group in deviations of the population.

    (xₙ - mean_g) / (std_g + eps), with n in the deviation

  With n - 1 in place of n it is `group_zscore`.

  Args:
    x_n: [N] float; not read where `live_n` is False.
    group_n: [N] int32.
    live_n: [N] bool.
    num_groups: G.
    eps: Added to the deviation, in units of `x_n`.

  Returns:
    [N] float32; 0 where not live, in groups of one and in equal groups.

  Raises:
    AssertionError: the shapes differ, or `x_n` is not floating point.
  """
  x_n, group_n, live_n = _check(x_n, group_n, live_n, num_groups)
  centered_n = group_center(x_n, group_n, live_n, num_groups=num_groups)
  variance_g = group_mean(
    jnp.square(centered_n), group_n, live_n, num_groups=num_groups
  )
  eps = floats.constant(eps, centered_n.dtype)
  result_n = centered_n / (stats.deviation(variance_g)[group_n] + eps)
  return jnp.where(live_n, result_n, 0.0)


def group_by_index(
  x_k: chex.Array,
  group_k: chex.Array,
  index_k: chex.Array,
  live_k: chex.Array,
  *,
  num_groups: int,
  num_indices: int,
  eps: chex.Numeric,
  divide: bool,
) -> chex.Array:
  """Compares the steps of a group that have the same place in their episode.

    xₖ - mean, or (xₖ - mean) / (std + eps), over the steps of the same group
    and index, with n in the deviation

  With x = 1 where a step was right and 0 elsewhere it is the group-relative
  correctness of each step by itself: the first steps of a group are compared
  with each other, the second ones with each other, and so on. Where every
  episode has one step, `divide=False` is `group_center`, the advantage of Dr.
  GRPO.

  Args:
    x_k: [S] float; not read where `live_k` is False.
    group_k: [S] int32 in 0 .. num_groups-1.
    index_k: [S] int32 place of the step in its episode, 0 .. num_indices-1.
    live_k: [S] bool.
    num_groups: G.
    num_indices: Most steps of an episode.
    eps: Added to the deviation, in units of `x_k`; read only with `divide`.
    divide: Whether to divide by the deviation.

  Returns:
    [S] float32; 0 where not live, where a step is alone at its index and where
    all are equal. In traced code NaN where a group or an index is out of its
    range: that step could not be compared.

  Raises:
    AssertionError: the shapes differ, or `x_k` is not floating point.
    ValueError: a known group or index is out of its range.

  Source: SAPO for recommendation, arXiv:2605.17648, read in a secondary source,
    which leaves open whether the deviation divides.
  """
  index_k = jnp.asarray(index_k)
  x_k, group_k, live_k = _check(x_k, group_k, live_k, num_groups)
  chex.assert_equal_shape([x_k, index_k])
  chex.assert_type(index_k, int)
  _check_live(index_k, live_k, num_indices, "index_k", "num_indices")
  known_k = (group_k >= 0) & (group_k < num_groups)
  known_k &= (index_k >= 0) & (index_k < num_indices)
  key_k = jnp.where(live_k & known_k, group_k * num_indices + index_k, 0)
  where = (key_k, live_k & known_k)
  num = num_groups * num_indices
  if divide:
    found_k = population_zscore(x_k, *where, num_groups=num, eps=eps)
  else:
    found_k = group_center(x_k, *where, num_groups=num)
  return jnp.where(live_k & ~known_k, jnp.nan, found_k)


def joint_group(first_n: chex.Array, second_n: chex.Array) -> chex.Array:
  """Numbers the distinct pairs: the groups of two keys at once.

  Where one key is the same for all, the groups are those of the other key.

  Args:
    first_n: [N] int32.
    second_n: [N] int32.

  Returns:
    [N] int32 in 0 .. N-1, equal exactly where both keys are equal.

  Raises:
    AssertionError: the shapes differ or the arrays are not integer.
  """
  first_n, second_n = jnp.asarray(first_n), jnp.asarray(second_n)
  chex.assert_rank(first_n, 1)
  chex.assert_equal_shape([first_n, second_n])
  chex.assert_type([first_n, second_n], int)
  order = jnp.lexsort((second_n, first_n))
  first, second = first_n[order], second_n[order]
  new = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
  number = jnp.pad(jnp.cumsum(new.astype(jnp.int32)), (1, 0))
  return jnp.zeros_like(number).at[order].set(number)
