"""What episodes on a panel of tasks show, with intervals over its tasks.

Episodes of one task are not independent of each other, so that the intervals
are bootstraps over tasks: a number of a task is the mean of its episodes, and
an episode that an environment broke counts as a failure of score 0. Where every
task is either solved or not, Wilson's interval takes the bootstrap's place: it
is not empty when all are.
"""

import collections
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.reports import intervals as reports_intervals

ALL = "all"


class Estimate(NamedTuple):
  """A mean over tasks.

  Attributes:
    mean: The mean.
    low: Lower end of its 95 % interval.
    high: Upper end.
    tasks: Number of tasks that it is of.
  """

  mean: float
  low: float
  high: float
  tasks: int


def by_task(
  trajectories: Sequence[types.Trajectory],
) -> list[list[types.Trajectory]]:
  """Episodes by task, in the order of the tasks' first episodes."""
  groups = collections.defaultdict(list)
  for trajectory in trajectories:
    groups[trajectory.task.uid].append(trajectory)
  return list(groups.values())


def numbers(
  episodes: Sequence[types.Trajectory],
  ks: Sequence[int],
  scores: Sequence[str],
) -> dict[str, float]:
  """Numbers of one task.

  Args:
    episodes: All of them, broken ones too.
    ks: Of pass@k; those above the number of episodes are left out.
    scores: Names of the environment's scores; one that an episode lacks is 0.

  Returns:
    Numbers by name. `steps` is of whole episodes and `length_over_golden` of
    successful ones: NaN where there are none.
  """
  count, won = len(episodes), [e for e in episodes if e.success]
  whole = [e for e in episodes if e.error is None]
  golden = episodes[0].task.golden_steps
  mean = lambda values: sum(values) / len(values) if values else math.nan
  out = {"success": len(won) / count}
  for k in ks:
    if k <= count:
      out[f"pass@{k}"] = reports_intervals.pass_at_k(len(won), count, k)
  for name in scores:
    out[name] = sum(e.scores.get(name, 0.0) for e in episodes) / count
  out["reward"] = mean([e.total_reward for e in whole])
  out["steps"] = mean([len(e.steps) for e in whole])
  steps = [step for e in whole for step in e.steps]
  out["invalid_share"] = mean([s.metadata.get("invalid", False) for s in steps])
  ratios = [len(e.steps) / golden for e in won] if golden else []
  out["length_over_golden"] = mean(ratios)
  out["error_share"] = 1 - len(whole) / count
  return out


def table(
  trajectories: Sequence[types.Trajectory], ks: Sequence[int] = (1,)
) -> dict[str, dict[str, Estimate]]:
  """Numbers of all tasks and of every family, with intervals over tasks.

  Args:
    trajectories: Episodes on one panel, in any order.
    ks: Of pass@k.

  Returns:
    By family, "all" first, numbers by name; see `numbers`.

  Raises:
    ValueError: there are no episodes.
  """
  scores = sorted({name for t in trajectories for name in t.scores})
  groups = by_task(trajectories)
  if not groups:
    raise ValueError("no episodes: there is nothing to tell of a panel")
  rows = [numbers(group, ks, scores) for group in groups]
  names = list(dict.fromkeys(name for row in rows for name in row))
  values = np.array([[row.get(n, math.nan) for n in names] for row in rows])
  families = [group[0].task.family for group in groups]
  of = {ALL: np.ones(len(groups), bool)}
  if len(set(families)) > 1:
    for family in sorted(set(families)):
      of[family] = np.array([f == family for f in families])
  return {
    family: _row(names, values[mask], seed)
    for seed, (family, mask) in enumerate(of.items())
  }


def _row(names, values, seed):
  ends = reports_intervals.intervals(values, seed)
  out = {}
  for name, column, low, high in zip(names, values.T, *ends, strict=True):
    known = column[~np.isnan(column)]
    solved = name == "success" or name.startswith("pass@")
    if solved and np.isin(known, (0.0, 1.0)).all():
      low, high = reports_intervals.wilson_interval(known.sum(), known.size)
    if known.size:
      out[name] = Estimate(float(known.mean()), float(low), float(high),
                         int(known.size))  # fmt: skip
  return out


class LengthBin(NamedTuple):
  """Episodes on tasks whose shortest solution has so many steps.

  Attributes:
    shortest: Fewest steps of a solution in this bin.
    longest: Most steps.
    tasks: Number of tasks.
    success: Share of episodes that solve a task.
    steps: Length of whole episodes.
    steps_won: Length of successful ones; None without any.
  """

  shortest: int
  longest: int
  tasks: int
  success: Estimate
  steps: Estimate | None
  steps_won: Estimate | None


def by_length(
  trajectories: Sequence[types.Trajectory], most_bins: int = 8
) -> list[LengthBin]:
  """Success and length of episodes against the length of a shortest solution.

  The tasks of one golden length are never parted; where there are more lengths
  than bins, neighbours are joined so that bins hold about as many tasks.

  Args:
    trajectories: Episodes on one panel; tasks without `golden_steps` are
      passed over.
    most_bins: At least 1.

  Returns:
    Bins by rising length; [] where no task has a golden length.
  """
  groups = [g for g in by_task(trajectories) if g[0].task.golden_steps]
  count_of = collections.Counter(g[0].task.golden_steps for g in groups)
  lengths, bins = sorted(count_of), []
  if len(lengths) <= most_bins:
    bins = [[length] for length in lengths]
  else:
    behind = 0
    for length in lengths:
      place = behind * most_bins // len(groups)
      if not bins or place > bins[-1][0]:
        bins.append([place])
      bins[-1].append(length)
      behind += count_of[length]
    bins = [each[1:] for each in bins]
  return [_length(groups, each) for each in bins]


def _length(groups, lengths):
  inside = [g for g in groups if g[0].task.golden_steps in lengths]
  mean = lambda values: sum(values) / len(values) if values else math.nan
  rows = [
    [
      mean([e.success for e in group]),
      mean([len(e.steps) for e in group if e.error is None]),
      mean([len(e.steps) for e in group if e.success]),
    ]
    for group in inside
  ]
  names = ("success", "steps", "steps_won")
  found = _row(names, np.array(rows, np.float64), 0)
  return LengthBin(
    lengths[0], lengths[-1], len(inside), *(found.get(name) for name in names)
  )


def draw_lengths(
  path: str | pathlib.Path,
  lengths: Mapping[str, Sequence[LengthBin]],
  max_steps: int,
) -> None:
  """Draws success and episode length against golden steps, a curve a split.

  Args:
    path: PNG to write.
    lengths: What `by_length` found, by split.
    max_steps: Limit of the episodes, which the title names.
  """
  # Slow to import, and needs no display.
  from matplotlib import figure

  canvas = figure.Figure(figsize=(10, 4), layout="constrained")
  success, steps = canvas.subplots(1, 2)
  for split, bins in lengths.items():
    _curve(success, split, bins, lambda bin_: bin_.success)
    _curve(steps, f"{split}, won", bins, lambda bin_: bin_.steps_won)
    _curve(steps, f"{split}, all", bins, lambda bin_: bin_.steps, style=":")
  most = max(b.longest for bins in lengths.values() for b in bins)
  steps.plot([1, most], [1, most], color="grey", linewidth=1, label="shortest")
  steps.axhline(max_steps, color="grey", linestyle="--", label="limit")
  success.set(ylabel="success", ylim=(0, 1))
  steps.set(ylabel="steps of an episode", ylim=(0, None))
  for axes in (success, steps):
    axes.set_xlabel("steps of a shortest solution")
    axes.legend()
  canvas.suptitle(f"at most {max_steps} steps, 95 % intervals over tasks")
  canvas.savefig(path, dpi=120)


def _curve(
  axes,
  label: str,
  bins: Sequence[LengthBin],
  pick: Callable[[LengthBin], Estimate | None],
  style: str = "-",
) -> None:
  points = [((b.shortest + b.longest) / 2, pick(b)) for b in bins]
  points = [(x, n) for x, n in points if n is not None]
  if points:
    x = [x for x, _ in points]
    axes.errorbar(
      x,
      [n.mean for _, n in points],
      [
        [max(0.0, n.mean - n.low) for _, n in points],
        [max(0.0, n.high - n.mean) for _, n in points],
      ],
      linestyle=style,
      marker=".",
      capsize=2,
      label=label,
    )
