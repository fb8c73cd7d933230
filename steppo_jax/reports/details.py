"""The second figure of a report: what a reviewer of a run asks next.

Which families are solved, whether responses grow and whether long ones win, how
old the samples are, how far ratios and advantages spread, and whether the
critic's values can be believed. The last three come from files of credit
(`storage.credit`) where a run has some; ratios and advantages are known less
well from its metrics alone. A panel without numbers is left out.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from steppo_jax.algorithms import options as algorithm_options
from steppo_jax.algorithms import table
from steppo_jax.files import read_object
from steppo_jax.storage import credit
from steppo_jax.storage import folder as run_folder

# Files of credit that are read for one figure: more would look no different.
_MOST_FILES = 60
# Updates at the end whose values are compared with returns.
_LAST_FILES = 10
_MOST_BINS = 10
_FAMILY = "success/"
_UPDATES = "updates done"
# Ratios that are nearer to 1 differ by rounding: sampler and learner are one.
_ON_POLICY = 1e-3
# Surrogates that clip the ratio itself.
_CLIPS = ("clip", "cispo")
_BANDS = ((0.01, 0.99, 0.15), (0.05, 0.95, 0.2), (0.25, 0.75, 0.3))


class Bin(NamedTuple):
  """Steps whose values are near each other.

  Attributes:
    value: Mean of V.
    returned: Mean of what came.
    low: Lower end of its 95 % interval, by the normal approximation.
    high: Upper end.
    count: Number of steps.
  """

  value: float
  returned: float
  low: float
  high: float
  count: int


def reliability(
  values: np.ndarray, returns: np.ndarray, most_bins: int = _MOST_BINS
) -> list[Bin]:
  """Returns of steps by the value that the critic gave them.

  Bins hold about as many steps each; equal values are never parted.

  Args:
    values: [S] V of each step.
    returns: [S] discounted rewards from there on.
    most_bins: At least 1.

  Returns:
    Bins by rising value; [] without steps.
  """
  order = np.argsort(values, kind="stable")
  values, returns = values[order], returns[order]
  place = np.arange(len(values)) * most_bins // max(len(values), 1)
  # A step with the value of the one before goes where that one went.
  first = np.r_[True, np.diff(values) > 0]
  place = np.maximum.accumulate(np.where(first, place, 0))
  bins = []
  for at in np.unique(place):
    here = returns[place == at]
    half = 1.96 * here.std(ddof=1) / len(here) ** 0.5 if len(here) > 1 else 0.0
    mean = float(here.mean())
    bins.append(
      Bin(
        float(values[place == at].mean()), mean, mean - half, mean + half,
        len(here),
      )
    )  # fmt: skip
  return bins


def returns_of(found: credit.Credit, discount: float) -> np.ndarray:
  """[S] discounted sum of the rewards from each step to its episode's end."""
  out = found.reward.astype(np.float64)
  ends = zip(found.first_step, found.first_step[1:], strict=False)
  for first, end in ends:
    for k in range(end - 2, first - 1, -1):
      out[k] += discount * out[k + 1]
  return out


def _chosen(run: pathlib.Path) -> list[int]:
  """Updates with a file of credit, thinned out evenly."""
  found = credit.updates_of(run)
  step = -(-len(found) // _MOST_FILES) or 1
  return found[::-1][::step][::-1]  # The last one is always among them.


class _Spread(NamedTuple):
  """Quantiles of a number over time: [U] updates and [U, Q]."""

  updates: list[int]
  quantiles: np.ndarray


_QUANTILES = sorted({0.5, *(q for low, high, _ in _BANDS for q in (low, high))})


def _spread(run: pathlib.Path, name: str) -> _Spread | None:
  rows, updates = [], []
  for update in _chosen(run):
    values = getattr(credit.read(credit.path_of(run, update)), name)
    values = values[np.isfinite(values)]
    if values.size:
      rows.append(np.quantile(values, _QUANTILES))
      updates.append(update)
  return _Spread(updates, np.array(rows)) if rows else None


def _legend(axes) -> None:
  """Below the panel, where it hides no curve."""
  labels = axes.get_legend_handles_labels()[1]
  if labels:
    short = max(map(len, labels)) < 15
    axes.legend(
      fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.17),
      ncols=min(len(labels), 5 if short else 2), frameon=False,
      columnspacing=1.0, handlelength=1.5,
    )  # fmt: skip


def _draw_spread(axes, spread: _Spread, label: str) -> None:
  colour = "tab:blue"
  column = {q: spread.quantiles[:, i] for i, q in enumerate(_QUANTILES)}
  for low, high, alpha in _BANDS:
    axes.fill_between(
      spread.updates, column[low], column[high], color=colour, alpha=alpha,
      linewidth=0, label=f"{100 * (high - low):.0f} % of all",
    )  # fmt: skip
  axes.plot(spread.updates, column[0.5], color=colour, label="median")
  axes.set(title=label, xlabel=_UPDATES)
  _legend(axes)


def _lines(axes, runs, names: Sequence[str], labels: Callable[[str], str]):
  """A curve a name and run; runs share the colour of a name."""
  for number, name in enumerate(names):
    for position, run in enumerate(runs):
      points = [(x["update"], x[name]) for x in run.lines if name in x]
      if points:
        axes.plot(
          *zip(*points, strict=True), color=f"C{number % 10}", linewidth=1.2,
          marker="." if len(points) < 15 else None,
          linestyle="-" if number < 10 else "--",
          label=labels(name) if position == 0 else None,
        )  # fmt: skip
  axes.set_xlabel(_UPDATES)
  _legend(axes)


def _names(runs, prefix: str) -> list[str]:
  found = {name for run in runs for line in run.lines for name in line}
  return sorted(name for name in found if name.startswith(prefix))


def _families(runs):
  """Success by family, on the panel or, without one, in training."""
  for kind, told in (("eval/", "on the panel"), ("rollout/", "in training")):
    names = _names(runs, kind + _FAMILY)
    if len(names) > 1:

      def draw(axes, names=names, kind=kind, told=told):
        short = lambda name: name.removeprefix(kind + _FAMILY)
        _lines(axes, runs, names, short)
        axes.set(title=f"success by family, {told}", ylim=(-0.03, 1.03))

      return draw
  return None


_LENGTHS = {
  "rollout/response_tokens": "all episodes",
  "rollout/response_tokens_won": "solved",
  "rollout/response_tokens_lost": "not solved",
}


def _lengths(runs):
  names = [n for n in _LENGTHS if n in _names(runs, n)]
  if not names:
    return None

  def draw(axes):
    _lines(axes, runs, names, _LENGTHS.__getitem__)
    axes.set(title="length of a response in tokens")
    axes.margins(y=0.3)

  return draw


def _staleness(runs):
  names = _names(runs, "rollout/staleness_share/")
  if not names:
    return None
  behind = sorted({int(name.rpartition("/")[2]) for name in names})

  def draw(axes):
    lines = [x for x in runs[0].lines if "rollout/staleness" in x]
    updates = [x["update"] for x in lines]
    share = lambda k: [x.get(f"rollout/staleness_share/{k}", 0) for x in lines]
    axes.stackplot(
      updates, [share(k) for k in behind], alpha=0.8,
      labels=[f"{k} behind" for k in behind],
    )  # fmt: skip
    axes.set(
      title="updates between sampling and training", xlabel=_UPDATES,
      ylabel="share of steps", ylim=(0, 1), xlim=(updates[0], updates[-1]),
    )  # fmt: skip
    _legend(axes)

  return draw


def _draw_clip(axes, run: pathlib.Path) -> None:
  """The ends of the clip, where it is one of this ratio."""
  row = row_of(run)
  if row is None or row.ratio != "step" or row.surrogate not in _CLIPS:
    return
  for end, label in ((1 - row.clip_low, "clip"), (1 + row.clip_high, None)):
    axes.axhline(end, color="grey", linestyle="--", linewidth=1, label=label)


def _ratios(runs):
  spread, title = _spread(runs[0].path, "ratio"), "ratio of a step"
  if spread is not None and np.abs(spread.quantiles - 1).max() > _ON_POLICY:

    def from_credit(axes):
      _draw_clip(axes, runs[0].path)
      _draw_spread(axes, spread, f"{title}, before the update")

    return from_credit
  names = [f"policy/ratio_q{percent}" for percent in ("01", "50", "99")]
  lines = [x for x in runs[0].lines if all(name in x for name in names)]
  if not lines:
    return None

  def from_metrics(axes):
    updates = [x["update"] for x in lines]
    low, middle, high = ([x[name] for x in lines] for name in names)
    axes.fill_between(
      updates, low, high, color="tab:blue", alpha=0.2, linewidth=0,
      label="98 % of all",
    )  # fmt: skip
    axes.plot(updates, middle, color="tab:blue", label="median")
    _draw_clip(axes, runs[0].path)
    axes.set(title=f"{title}, at the end of the update", xlabel=_UPDATES)
    _legend(axes)

  return from_metrics


def _advantages(runs):
  spread = _spread(runs[0].path, "advantage")
  if spread is not None:
    return lambda axes: _draw_spread(axes, spread, "advantage of a step")
  name = "policy/advantage_abs"
  if name not in _names(runs, name):
    return None

  def from_metrics(axes):
    _lines(axes, runs, [name], lambda _: "mean size")
    axes.set(title="advantage", ylim=(0, None))

  return from_metrics


def row_of(run: pathlib.Path) -> table.Algorithm | None:
  """The algorithm of a run, with its options; None where it does not say.

  Raises:
    ValueError: the options are those of no algorithm here.
  """
  file = run / run_folder.CONFIG_NAME
  if not file.is_file():
    return None
  told = read_object(file).get("algorithm")
  if told is None:  # Supervised.
    return None
  known = {
    f.name for f in dataclasses.fields(algorithm_options.AlgorithmConfig)
  }
  plain = lambda value: tuple(value) if isinstance(value, list) else value
  own = {name: plain(v) for name, v in told.items() if name in known}
  return algorithm_options.AlgorithmConfig(**own).row()


def discount_of(row: table.Algorithm) -> float | None:
  """γ per step; None where it is one per token."""
  return row.discount if row.critic != "token" or row.discount == 1 else None


def _reliability(runs):
  run = runs[0].path
  updates = credit.updates_of(run)[-_LAST_FILES:]
  row = row_of(run) if updates else None
  discount = None if row is None else discount_of(row)
  if discount is None:
    return None
  files = [credit.read(credit.path_of(run, update)) for update in updates]
  values = np.concatenate([one.value for one in files])
  returns = np.concatenate([returns_of(one, discount) for one in files])
  known = np.isfinite(values)
  bins = reliability(values[known], returns[known])
  if not bins:
    return None

  def draw(axes):
    x = [b.value for b in bins]
    y = [b.returned for b in bins]
    below = [b.returned - b.low for b in bins]
    above = [b.high - b.returned for b in bins]
    axes.errorbar(
      x,
      y,
      [below, above],
      marker="o",
      markersize=4,
      capsize=2,
      label="mean return, 95 %",
    )
    ends = min(x), max(x)
    axes.plot(ends, ends, color="grey", linestyle=":", label="V is right")
    for b in bins:
      axes.annotate(
        f"{b.count}", (b.value, b.high), xytext=(0, 3), fontsize="x-small",
        textcoords="offset points", ha="center",
      )  # fmt: skip
    axes.set(
      title=f"critic, updates {updates[0]} to {updates[-1]}",
      xlabel="V of a step (number of steps above)", ylabel="discounted return",
    )  # fmt: skip
    _legend(axes)

  return draw


_PANELS = (
  _families, _lengths, _staleness, _ratios, _advantages, _reliability,
)  # fmt: skip


def draw(path: pathlib.Path, runs: Sequence[Any]) -> list[str]:
  """Draws the panels that there are numbers for.

  Args:
    path: PNG to write.
    runs: From `reports.report.read_run`. Curves are of all, files of credit of
      the first.

  Returns:
    Their titles; without one no file is left there.
  """
  panels = [panel for make in _PANELS if (panel := make(runs)) is not None]
  if not panels:
    path.unlink(missing_ok=True)
    return []
  # Slow to import, and needs no display.
  from matplotlib import figure

  columns = min(len(panels), 2)
  rows = -(-len(panels) // columns)
  canvas = figure.Figure(
    figsize=(5.5 * columns, 3.9 * rows), layout="constrained"
  )
  grid = canvas.subplots(rows, columns, squeeze=False).flatten()
  for axes, panel in zip(grid, panels, strict=False):
    panel(axes)
    axes.grid(alpha=0.2)
  for axes in grid[len(panels) :]:
    axes.set_axis_off()
  canvas.suptitle(f"{runs[0].path.resolve().name}, details")
  canvas.savefig(path, dpi=120)
  return [axes.get_title() for axes in grid[: len(panels)]]
