"""Tables and plots of a comparison, from its `results.jsonl` alone."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from steppo_jax import files
from steppo_jax.reports import intervals
from steppo_jax.reports import intervals as reports_intervals

RESULTS_NAME = "results.jsonl"


Line = dict[str, Any]


def read(path: str | os.PathLike) -> list[Line]:
  """Lines of results.

  Raises:
    ValueError: no such file, or a line that is not of a comparison.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / RESULTS_NAME
  if not path.is_file():
    raise ValueError(f"no results of a comparison at {path}")
  lines = []
  for where, line in files.read_lines(path):
    missing = {"world", "method", "status", "curve"} - line.keys()
    if missing:
      raise ValueError(
        f"{where}: no result of a comparison, without {sorted(missing)}"
      )
    lines.append(line)
  return lines


def area(curve: Sequence[Sequence[float]]) -> float:
  """Area under a curve of [update, success], as a mean over the updates."""
  x, y = np.asarray(curve, np.float64).T
  return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else y[0]


def _finals(lines, world):
  """Finished reported runs of a world by method, in the order of the file."""
  by: dict[str, list[Line]] = {}
  for line in lines:
    if line["kind"] == "final" and line["world"] == world:
      runs = by.setdefault(line["method"], [])
      if line["status"] == "done":
        runs.append(line)
  return by


def _show(values) -> str:
  if not values:
    return "no finished run"
  low, high = intervals.bootstrap_interval(values, 0)
  return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def _triple(found, sign="") -> str:
  return " ".join(
    [f"{found[0]:{sign}.3f}", f"[{found[1]:{sign}.3f}, {found[2]:{sign}.3f}]"]
  )


def _mean(runs, name) -> float:
  """Over the runs that tell it; not a number where none does."""
  told = [x[name] for x in runs if x.get(name) is not None]
  return float(np.mean(told)) if told else float("nan")


def _table(lines, world) -> list[str]:
  by = _finals(lines, world)
  if not by:
    return ["No reported run has begun."]
  reference = next(iter(by))
  base = [x["success"] for x in by[reference]]
  text = [
    f"| method | success at the end | difference to {reference} |"
    f" P(better than {reference}) | area under the curve | finished runs |"
    " settings | clipped | minutes a run |",
    "|---" * 9 + "|",
  ]
  planned = [x for x in lines if x["kind"] == "final" and x["world"] == world]
  for method, runs in by.items():
    ends = [x["success"] for x in runs]
    others = ["", ""]
    if method != reference and ends and base:
      others = [
        _triple(reports_intervals.difference(ends, base, 0), "+"),
        _triple(reports_intervals.improvement(ends, base, 0)),
      ]
    mine = [x for x in planned if x["method"] == method]
    settings = ", ".join(f"{k} {v:g}" for k, v in mine[0]["settings"].items())
    text.append(
      f"| {method} | {_show(ends)} | {others[0]} | {others[1]} |"
      f" {_show([area(x['curve']) for x in runs])} |"
      f" {len(runs)} of {len(mine)} | {settings} |"
      f" {_mean(runs, 'mean/policy/clip_fraction'):.1%} |"
      f" {_mean(runs, 'minutes'):.1f} |"
    )
  least = reports_intervals.detectable(
    [[x["success"] for x in runs] for runs in by.values()]
  )
  text += [
    "",
    "Intervals are 95 %, bootstrap over runs: too narrow with few. "
    + (
      "Deviation between seeds unknown."
      if least is None
      else f"A difference of {least:.3f} would have been found in 4 of 5 cases."
    ),
  ]
  return text


def _failures(lines) -> list[str]:
  missing = [x for x in lines if x["status"] != "done"]
  if not missing:
    return ["Every run finished."]
  return [
    f"- {x['kind']} {x['world']} {x['method']} seed {x['seed']}, after"
    f" {x['updates']} updates: {x['status']}"
    + (f", {x['error']}" if "error" in x else "")
    for x in missing
  ]


def _searches(lines) -> list[str]:
  searched = [x for x in lines if x["kind"] == "search"]
  if not searched:
    return ["No settings were searched."]
  by: dict[tuple, list[Line]] = {}
  for x in searched:
    key = x["world"], x["method"], *x["settings"].values()
    by.setdefault(key, []).append(x)
  text = ["| world | method | settings | success | runs |", "|---" * 5 + "|"]
  for (world, method, *_), runs in by.items():
    done = [x["success"] for x in runs if x["status"] == "done"]
    settings = ", ".join(f"{k} {v:g}" for k, v in runs[0]["settings"].items())
    text.append(
      f"| {world} | {method} | {settings} |"
      f" {f'{np.mean(done):.3f}' if done else 'none'} |"
      f" {len(done)} of {len(runs)} |"
    )
  return text


def tables(lines: Sequence[Line]) -> str:
  """The page of a comparison, in Markdown."""
  text = []
  for world in dict.fromkeys(x["world"] for x in lines):
    text += [f"## {world}", "", *_table(lines, world), ""]
  text += ["## Settings that were searched", "", *_searches(lines), ""]
  text += ["## Runs that did not finish", "", *_failures(lines), ""]
  hours = sum(x.get("minutes") or 0 for x in lines) / 60
  facts = {key: sorted({x[key] for x in lines if key in x})
           for key in ("commit", "hardware")}  # fmt: skip
  dates = sorted({x["date"][:10] for x in lines if "date" in x})
  text.append(
    f"{hours:.2f} hours of runs on {'; '.join(facts['hardware'])}; commits"
    f" {', '.join(facts['commit'])}; {' to '.join(dates[:1] + dates[1:][-1:])}."
  )
  return "\n".join(text) + "\n"


def _draw(path, lines) -> None:
  # Slow to import, and needs no display.
  from matplotlib import figure

  worlds = list(dict.fromkeys(x["world"] for x in lines))
  sheet = figure.Figure(figsize=(6 * len(worlds), 4), layout="constrained")
  grid = sheet.subplots(1, len(worlds), squeeze=False)[0]
  for axes, world in zip(grid, worlds, strict=True):
    for i, (method, runs) in enumerate(_finals(lines, world).items()):
      if not runs:
        continue
      curves = np.array([x["curve"] for x in runs])
      ends = [
        intervals.bootstrap_interval(column, 0) for column in curves[..., 1].T
      ]
      x = curves[0, :, 0]
      axes.plot(x, curves[..., 1].mean(0), f"C{i}.-", label=method)
      axes.fill_between(x, *np.array(ends).T, color=f"C{i}", alpha=0.15)
    axes.set(xlabel="update", ylabel="success on unseen games", title=world)
    if axes.has_data():
      axes.legend(fontsize=7)
  sheet.savefig(path, dpi=100)


def report(path: str | os.PathLike) -> pathlib.Path:
  """Writes `summary.md` and `report.png` beside the results.

  Args:
    path: Folder of a comparison, or its `results.jsonl`; a file of another name
      gives NAME.md and NAME.png.

  Returns:
    The path of the summary.

  Raises:
    ValueError: there are no such results.
  """
  path = pathlib.Path(path)
  lines = read(path)
  page, plot = path.with_suffix(".md"), path.with_suffix(".png")
  if path.is_dir() or path.name == RESULTS_NAME:
    folder = path if path.is_dir() else path.parent
    page, plot = folder / "summary.md", folder / "report.png"
  page.write_text(tables(lines))
  _draw(plot, lines)
  return page
