"""Intervals of means, success rates and differences, all at 95 %."""

import math
from collections.abc import Sequence

import numpy as np

# A normal deviate beyond which 5 % lie, both sides together.
_Z = 1.959963984540054
_RESAMPLINGS = 10_000
# Drawn at once: 10,000 resamplings of 20,000 tasks would be 1.6 GB of indices.
_CHUNK = 2_000_000
# Two-sided 5 % and 80 % power: 1.96 + 0.84 deviations of the difference.
_POWER = 2.8


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
  """95 % interval of a success probability.

      (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

  Args:
    successes: number of successes, 0 to n.
    n: number of independent episodes.

  Returns:
    Lower and upper end, in [0, 1]; (0, 1) for n = 0.

  Raises:
    ValueError: successes are not within 0 and n.

  Source: Wilson 1927, Probable inference, the law of succession, and
  statistical inference.
  """
  if not 0 <= successes <= n:
    raise ValueError(f"{successes} successes of {n} episodes are not possible")
  if n == 0:
    return 0.0, 1.0
  p = successes / n
  scale = 1 + _Z**2 / n
  centre = (p + _Z**2 / (2 * n)) / scale
  half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / scale
  return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
  values: Sequence[float], seed: int
) -> tuple[float, float]:
  """95 % percentile-bootstrap interval of a mean over seeds.

  Args:
    values: one number a run.
    seed: of the 10,000 resamplings.

  Returns:
    Lower and upper end; with few runs it is too narrow, and with one it is that
    run's number.

  Raises:
    ValueError: there are no values.

  Source: Efron 1979, Bootstrap methods: another look at the jackknife.
  """
  values = np.asarray(values, np.float64)
  if not values.size:
    raise ValueError("a bootstrap needs at least one value")
  random = np.random.default_rng(seed)
  drawn = random.integers(values.size, size=(10_000, values.size))
  low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
  return float(low), float(high)


def pass_at_k(successes: int, samples: int, k: int) -> float:
  """Chance that one of k episodes solves a task, without bias.

      1 - C(n - c, k) / C(n, k)

  Args:
    successes: c, how many of the episodes solved it.
    samples: n, the number of its episodes.
    k: Between 1 and n.

  Raises:
    ValueError: the numbers are out of range.

  Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.
  """
  if not 0 <= successes <= samples or not 1 <= k <= samples:
    raise ValueError(
      f"pass@{k} of {successes} successes in {samples} episodes is not defined"
    )
  return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)


def intervals(values: np.ndarray, seed: int) -> np.ndarray:
  """95 % percentile-bootstrap intervals of means over tasks.

  Args:
    values: [tasks, M] numbers; NaN where a task has none.
    seed: Of the 10,000 resamplings, which all columns share.

  Returns:
    [2, M] lower and upper ends; NaN for a column without numbers.

  Raises:
    ValueError: there are no tasks.

  Source: Efron 1979, Bootstrap methods: another look at the jackknife.
  """
  tasks, columns = values.shape
  if not tasks:
    raise ValueError("a bootstrap needs at least one task")
  known = ~np.isnan(values)
  both = np.concatenate([np.where(known, values, 0.0), known], axis=1)
  random = np.random.default_rng(seed)
  means, left = [], _RESAMPLINGS
  while left:
    rows = min(left, max(1, _CHUNK // tasks))
    drawn = random.integers(tasks, size=(rows, tasks))
    # How often each task was drawn: one product gives all columns' sums.
    flat = (drawn + np.arange(rows)[:, None] * tasks).reshape(-1)
    counts = np.bincount(flat, minlength=rows * tasks).reshape(rows, tasks)
    sums = counts.astype(np.float64) @ both
    with np.errstate(invalid="ignore", divide="ignore"):
      means.append(sums[:, :columns] / sums[:, columns:])
    left -= rows
  found = np.concatenate(means)
  ends = np.full((2, columns), np.nan)
  for column in np.flatnonzero(known.any(axis=0)):
    # A resampling may miss every task that has a number.
    here = found[:, column]
    ends[:, column] = np.quantile(here[~np.isnan(here)], [0.025, 0.975])
  return ends


def improvement(
  ours: Sequence[float], theirs: Sequence[float], seed: int
) -> tuple[float, float, float]:
  """Probability that a run of ours is better than one of theirs.

    P = mean over pairs of [x > y] + 1/2 [x = y]

  Args:
    ours: One number a run.
    theirs: One number a run; the runs are not paired.
    seed: Of the resamplings of both.

  Returns:
    The probability and its 95 % percentile-bootstrap interval.

  Source: Agarwal et al. 2021, arXiv:2108.13264.
  """
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  better = np.sign(ours[:, None] - theirs[None, :]) / 2 + 0.5
  random = np.random.default_rng(seed)
  i = random.integers(len(ours), size=(_RESAMPLINGS, len(ours)))
  j = random.integers(len(theirs), size=(_RESAMPLINGS, len(theirs)))
  drawn = better[i[:, :, None], j[:, None, :]].mean((1, 2))
  low, high = np.quantile(drawn, [0.025, 0.975])
  return float(better.mean()), float(low), float(high)


def difference(
  ours: Sequence[float], theirs: Sequence[float], seed: int
) -> tuple[float, float, float]:
  """Difference of the means and its 95 % percentile-bootstrap interval."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  random = np.random.default_rng(seed)
  draw = lambda x: x[random.integers(len(x), size=(_RESAMPLINGS, len(x)))].mean(
    1
  )
  low, high = np.quantile(draw(ours) - draw(theirs), [0.025, 0.975])
  return float(ours.mean() - theirs.mean()), float(low), float(high)


def detectable(groups: Sequence[Sequence[float]]) -> float | None:
  """Smallest difference of two means that the design finds in 4 of 5 cases.

  From the pooled deviation of the runs within their groups and the smallest
  group, by the normal approximation; None without two runs in a group.
  """
  groups = [np.asarray(x) for x in groups if len(x) > 1]
  if not groups:
    return None
  free = sum(len(x) - 1 for x in groups)
  variance = sum(((x - x.mean()) ** 2).sum() for x in groups) / free
  return float(_POWER * np.sqrt(2 * variance / min(map(len, groups))))
