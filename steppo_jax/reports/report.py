"""What a run showed: curves with intervals and a page of text.

    python -m steppo_jax report runs/household_steppo [more seeds ...]

reads `metrics.jsonl` of each run folder, and `run.json` where there is one,
and writes `report.png`, `details.png` and `summary.md` into the first folder.
With `--markdown FILE` it also writes a report for a pull request, in which runs
that differ in more than their seed are compared (`reports.markdown`).
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from steppo_jax.reports import details, goodput, intervals, markdown, plots
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics

SUCCESS = plots.SUCCESS
EPISODES = "eval/episodes"


@dataclasses.dataclass(frozen=True)
class RunLines:
  """The lines of one run.

  Attributes:
    path: the run folder.
    lines: everything that was written, in order.
    facts: what ran, from `run.json`: command, hardware, commit, seed, ...
  """

  path: pathlib.Path
  lines: list[dict[str, Any]]
  facts: dict[str, Any]

  @property
  def evaluations(self) -> list[dict[str, Any]]:
    return [line for line in self.lines if SUCCESS in line]


def read_run(run_dir: str | os.PathLike) -> RunLines:
  """Reads a run folder.

  Raises:
    ValueError: no metrics, a broken file, or a run that was never evaluated.
  """
  path = pathlib.Path(run_dir)
  facts = {}
  if (path / run_folder.FACTS_NAME).is_file():
    try:
      facts = json.loads((path / run_folder.FACTS_NAME).read_text())
    except ValueError as error:
      raise ValueError(
        f"{path / run_folder.FACTS_NAME} is not JSON: {error}"
      ) from error
  run = RunLines(path, metrics.read_jsonl(path), facts)
  if not run.evaluations:
    raise ValueError(
      f"{path} holds no evaluation yet; wait for the first one, or set a "
      "smaller interval between evaluations"
    )
  for line in run.evaluations:
    for name in (SUCCESS, EPISODES, "minutes"):
      if not isinstance(line.get(name), int | float) or math.isnan(line[name]):
        raise ValueError(
          f"the evaluation of update {line['update']} in {path} has no "
          f"{name}; evaluate that run again"
        )
  return run


def combine(runs: Sequence[RunLines]) -> list[dict[str, Any]]:
  """Returns the evaluations that all runs have, averaged, with intervals.

  The interval is over episodes (Wilson) for one run and over runs (bootstrap)
  for several.

  Returns:
    Per update: the mean of every number, `low` and `high` of success, and the
    number of `runs`.

  Raises:
    ValueError: no update was evaluated in all runs.
  """
  by_update = [{line["update"]: line for line in r.evaluations} for r in runs]
  combined = []
  for update in sorted(set.intersection(*map(set, by_update))):
    lines = [run[update] for run in by_update]
    mean = {
      name: float(np.mean([line[name] for line in lines]))
      for name, value in lines[0].items()
      if isinstance(value, int | float) and all(name in x for x in lines)
    }
    if len(lines) == 1:
      n = round(lines[0][EPISODES])
      interval = intervals.wilson_interval(round(lines[0][SUCCESS] * n), n)
    else:
      interval = intervals.bootstrap_interval(
        [x[SUCCESS] for x in lines], seed=0
      )
    combined.append(
      mean
      | {"update": update, "low": interval[0], "high": interval[1]}
      | {"runs": len(runs)}
    )
  if not combined:
    raise ValueError(
      "the runs have no evaluated update in common; report runs of one "
      f"experiment: {', '.join(str(run.path) for run in runs)}"
    )
  return combined


def rise(runs: Sequence[RunLines]) -> tuple[float, float, float]:
  """Returns last minus first success and its 95 % interval.

  One run: Newcombe's interval for a difference of two proportions; wider than
  needed where both were measured on the same games. Several: bootstrap over
  the runs' differences.

  Source: Newcombe 1998, Interval estimation for the difference between
  independent proportions, method 10.
  """
  curve = combine(runs)
  first, last = curve[0], curve[-1]
  change = last[SUCCESS] - first[SUCCESS]
  if len(runs) > 1:
    ends = [
      {line["update"]: line[SUCCESS] for line in run.evaluations}
      for run in runs
    ]
    changes = [e[last["update"]] - e[first["update"]] for e in ends]
    return change, *intervals.bootstrap_interval(changes, seed=0)
  down = math.hypot(last[SUCCESS] - last["low"], first["high"] - first[SUCCESS])
  up = math.hypot(last["high"] - last[SUCCESS], first[SUCCESS] - first["low"])
  return change, change - down, change + up


def _show(line):
  return f"{line[SUCCESS]:.3f} [{line['low']:.3f}, {line['high']:.3f}]"


def _mean_of(runs, name):
  values = [x[name] for run in runs for x in run.lines if name in x]
  values = [value for value in values if not math.isnan(value)]
  return f"{np.mean(values):.3g}" if values else "not measured"


def _summary(runs, curve, control) -> str:
  first, last = curve[0], curve[-1]
  kind = "Wilson, over episodes"
  if len(runs) > 1:
    kind = f"bootstrap over {len(runs)} runs"
  change, low, high = rise(runs)
  lines = [f"# {runs[0].path.resolve().name}", ""]
  for run in runs:
    facts = "; ".join(f"{key}: {value}" for key, value in run.facts.items())
    lines.append(f"- {run.path.name}: {facts or f'no {run_folder.FACTS_NAME}'}")
  lines += [
    "",
    f"Intervals are 95 % ({kind}); {round(last[EPISODES])} episodes an "
    "evaluation.",
    "",
    f"| | start (update {first['update']}) | end (update {last['update']}) |",
    "|---|---|---|",
    f"| success | {_show(first)} | {_show(last)} |",
  ]
  others = [
    name
    for name in curve[-1]
    if name.startswith("eval/")
    and name != SUCCESS
    and not name.startswith(EPISODES)
  ]
  lines += [
    f"| {name.removeprefix('eval/')} | {first.get(name, math.nan):.3f} "
    f"| {last[name]:.3f} |"
    for name in sorted(others, key=lambda n: (not n.startswith(SUCCESS), n))
  ]
  lines += [
    "",
    f"Rise: {change:+.3f} [{low:+.3f}, {high:+.3f}] in {last['minutes']:.1f} "
    f"minutes and {last['update']} updates.",
    f"Speed: {_mean_of(runs, 'rollout/episodes_per_s')} episodes/s, "
    f"{_mean_of(runs, 'tokens_per_s')} tokens/s.",
    f"Invalid actions while training: "
    f"{_mean_of(runs, 'rollout/invalid_share')}.",
  ]
  for run in runs:
    lines += goodput.table(run.path)
  if control is not None:
    end = control[-1]
    lines.append(
      f"Control, more supervised training: {_show(end)} after "
      f"{end['minutes']:.1f} minutes."
    )
  return "\n".join(lines) + "\n"


def report(
  run_dir: str | os.PathLike,
  *more: str | os.PathLike,
  control: str | os.PathLike | None = None,
  markdown_file: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes `report.png`, `details.png` and `summary.md` into the first folder.

  There is no `details.png` of a run whose lines say nothing of the kind.

  Args:
    run_dir: the run.
    more: the same experiment with other seeds.
    control: a run of supervised training of equal wall time, drawn beside it.
    markdown_file: a report for a pull request, in which `more` may be other
      experiments: each variant then has figures in the folder of its first run.

  Returns:
    The path of the summary.

  Raises:
    ValueError: a folder holds no evaluated run, or `markdown_file` cannot be
      written.
  """
  runs = [read_run(path) for path in (run_dir, *more)]
  beside = None if control is None else combine([read_run(control)])
  if markdown_file is None:
    return _report(runs, beside)
  groups = markdown.variants(runs)
  for group in groups:
    _report(group, beside)
  folders = [group[0].path for group in groups]
  pictures = [folder / name for folder in folders for name in _PICTURES]
  return markdown.write(
    markdown_file,
    groups,
    [combine(group) for group in groups],
    [picture for picture in pictures if picture.is_file()],
  )


_PICTURES = ("report.png", "details.png")


def _report(runs: Sequence[RunLines], beside) -> pathlib.Path:
  """The figures and the summary of one variant, in its first folder."""
  folder, curve = runs[0].path, combine(runs)
  plots.draw(folder / _PICTURES[0], runs, curve, beside)
  details.draw(folder / _PICTURES[1], runs)
  summary = folder / "summary.md"
  summary.write_text(_summary(runs, curve, beside))
  return summary
