"""A report of runs for a pull request: tables with intervals, in Markdown.

Runs that differ in nothing but their seed are one *variant*. The first variant
is what the others are compared with, so that the run before a change is given
first.
"""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from steppo_jax import files
from steppo_jax.reports import intervals, plots
from steppo_jax.storage import folder as run_folder

_SUCCESS = plots.SUCCESS
_EPISODES = "eval/episodes"
# What tells no two variants apart.
_OWN = ("seed", "run_dir")
_SPEED = {
  "rollout/episodes_per_s": "episodes/s", "tokens_per_s": "tokens/s",
}  # fmt: skip


def options_of(run: pathlib.Path) -> dict[str, Any]:
  """The options of a run by their whole names; {} where it has none.

  Raises:
    ValueError: the file is not JSON.
  """
  file = run / run_folder.CONFIG_NAME
  return run_folder.flat(files.read_object(file)) if file.is_file() else {}


def variants(runs: Sequence[Any]) -> list[list[Any]]:
  """Runs by their options without seed and folder, in the order given."""
  found: dict[str, list[Any]] = {}
  for run in runs:
    options = options_of(run.path)
    own = {k: v for k, v in options.items() if k not in _OWN}
    # A run that does not say what it is stands alone.
    key = json.dumps(own, sort_keys=True) if own else str(run.path)
    found.setdefault(key, []).append(run)
  return list(found.values())


def differences(groups: Sequence[Sequence[Any]]) -> list[tuple[str, list[str]]]:
  """Options in which variants differ, with the value in each."""
  options = [options_of(group[0].path) for group in groups]
  names = sorted({name for one in options for name in one} - {*_OWN})
  missing = object()
  rows = []
  for name in names:
    values = [one.get(name, missing) for one in options]
    if any(value != values[0] for value in values):
      rows.append(
        (name, ["" if v is missing else json.dumps(v) for v in values])
      )
  return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """A table, in which no cell can end a cell."""
  line = lambda cells: "| " + " | ".join(map(_cell, cells)) + " |"
  return [line(head), "|" + "---|" * len(head), *map(line, rows), ""]


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("\n", " ")


def _show(mean: float, low: float, high: float, form: str = ".3f") -> str:
  return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _of_line(line) -> str:
  return _show(line[_SUCCESS], line["low"], line["high"])


def _change(ours, theirs, ends) -> str:
  """Difference of the last successes of two variants, with its interval."""
  mine, other = ends
  if len(ours) > 1 and len(theirs) > 1:
    last = lambda runs, end: [
      line[_SUCCESS]
      for run in runs
      for line in run.evaluations
      if line["update"] == end["update"]
    ]
    return _show(
      *intervals.difference(last(ours, mine), last(theirs, other), 0), "+.3f"
    )
  # Newcombe's, of the ends' own intervals.
  change = mine[_SUCCESS] - other[_SUCCESS]
  down = math.hypot(
    mine[_SUCCESS] - mine["low"], other["high"] - other[_SUCCESS]
  )
  up = math.hypot(mine["high"] - mine[_SUCCESS], other[_SUCCESS] - other["low"])
  return _show(change, change - down, change + up, "+.3f")


def _mean(runs, name: str) -> str:
  values = [x[name] for run in runs for x in run.lines if name in x]
  values = [value for value in values if math.isfinite(value)]
  return f"{sum(values) / len(values):.3g}" if values else "not measured"


def _variants(groups, names, curves) -> list[str]:
  head = ["variant", "runs", "success at the start", "at the end", "updates",
          "minutes", *_SPEED.values()]  # fmt: skip
  if len(groups) > 1:
    head.insert(4, f"less {names[0]}")
  rows = []
  for name, runs, curve in zip(names, groups, curves, strict=True):
    row = [
      name, str(len(runs)), _of_line(curve[0]), _of_line(curve[-1]),
      str(curve[-1]["update"]), f"{curve[-1]['minutes']:.1f}",
      *(_mean(runs, speed) for speed in _SPEED),
    ]  # fmt: skip
    if len(groups) > 1:
      change = ""
      if runs is not groups[0]:
        change = _change(runs, groups[0], (curve[-1], curves[0][-1]))
      row.insert(4, change)
    rows.append(row)
  return _table(head, rows)


def _families(names, curves) -> list[str]:
  """Success by family at the end, with Wilson's interval where counts are."""
  prefix = f"{_SUCCESS}/"
  found = sorted(
    {n for curve in curves for n in curve[-1] if n.startswith(prefix)}
  )
  if not found:
    return []
  rows = []
  for name in found:
    family = name.removeprefix(prefix)
    cells = []
    for curve in curves:
      end = curve[-1]
      if name not in end or math.isnan(end[name]):
        cells.append("")
        continue
      count = end.get(f"{_EPISODES}/{family}", 0)
      # The mean over runs has as many episodes as all of them together.
      n = round(count * end["runs"])
      cells.append(
        _show(
          end[name],
          *intervals.wilson_interval(min(end[name] * n, n), n),
        )
        if n
        else f"{end[name]:.3f}"
      )
    rows.append([family, *cells])
  return [
    "## Success by family, at the end",
    "",
    *_table(["family", *names], rows),
  ]


def _facts(groups, names) -> list[str]:
  rows = []
  for name, runs in zip(names, groups, strict=True):
    for run in runs:
      told, options = run.facts, options_of(run.path)
      fact = lambda name, told=told: str(told.get(name, ""))
      rows.append([
        run.path.name, name, str(options.get("seed", fact("seed"))),
        fact("commit"), fact("hardware"), fact("date")[:10],
        f"`{fact('command')}`",
      ])  # fmt: skip
  head = ["run", "variant", "seed", "commit", "hardware", "date", "command"]
  return ["## What ran", "", *_table(head, rows)]


def write(
  file: str | os.PathLike,
  groups: Sequence[Sequence[Any]],
  curves: Sequence[Sequence[dict[str, Any]]],
  pictures: Sequence[pathlib.Path],
) -> pathlib.Path:
  """Writes the report.

  Args:
    file: To write; its folder exists.
    groups: From `variants`.
    curves: What `reports.report.combine` made of each, with "runs", their
      number.
    pictures: Figures to link to, by paths relative to the file's folder.

  Raises:
    ValueError: the file cannot be written.
  """
  file = pathlib.Path(file)
  names = _named(groups)
  lines = [
    f"# {names[0]}" if len(names) == 1 else f"# {' against '.join(names)}"
  ]
  lines += [
    "",
    "Success is of the evaluation panel, intervals are 95 %: Wilson's over the "
    f"{round(curves[0][-1][_EPISODES])} episodes of one run, a bootstrap over "
    "the runs where a variant has several.",
    "",
    *_variants(groups, names, curves),
    *_families(names, curves),
  ]
  if len(groups) > 1:
    rows = [[f"`{n}`", *(f"`{v}`" if v else "" for v in values)]
            for n, values in differences(groups)]  # fmt: skip
    lines += ["## Options that differ", ""]
    lines += (
      _table(["option", *names], rows) if rows else ["None is known.", ""]
    )
  lines += _facts(groups, names)
  if pictures:
    lines += ["## Figures", ""]
    start = file.absolute().parent
    for picture in pictures:
      where = pathlib.Path(
        os.path.relpath(picture.absolute(), start)
      ).as_posix()
      told = f"{picture.absolute().parent.name}: {picture.stem}"
      lines += [f"![{_label(told)}](<{where}>)", ""]
  try:
    files.replace(file, "\n".join(lines).rstrip() + "\n")
  except OSError as error:
    raise ValueError(f"--markdown={file}: {error.strerror}") from error
  return file


def _label(text: str) -> str:
  return text.replace("[", "(").replace("]", ")")


def _named(groups) -> list[str]:
  """A name a variant: that of its first run's folder, made unique."""
  names: list[str] = []
  for group in groups:
    path = group[0].path.resolve()
    name = path.name
    if name in names:
      name = f"{path.parent.name}/{name}"
    while name in names:
      name += "'"
    names.append(name)
  return names
