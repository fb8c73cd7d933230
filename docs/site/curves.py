"""Learning curves of algorithms, from the runs that `docs/compare` records."""

import collections
import json
import pathlib

import numpy as np
from matplotlib import figure

from steppo_jax.algorithms import table as algorithms_table

# Comparisons in which a method runs under its own name, and what they are of.
COMPARISONS = {
  "equal": "household games, all methods at one learning rate",
  "scratchpad": "household games with thoughts of some 50 tokens",
  "shop": "generated shops",
  "actfocus": "household games with thoughts of some 50 tokens",
}


def draw(
  compare: pathlib.Path, folder: pathlib.Path
) -> dict[str, list[tuple[str, str]]]:
  """Draws the curves of every algorithm that was run.

  Args:
    compare: Folder of the recorded runs.
    folder: Where the plots are written.

  Returns:
    By the name of the algorithm, file and text of its plots.
  """
  found = collections.defaultdict(list)
  for comparison, about in COMPARISONS.items():
    file = compare / f"{comparison}.jsonl"
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    runs = [r for r in runs if r["kind"] != "search" and r.get("curve")]
    methods = sorted({run["method"] for run in runs})
    for name in methods:
      if name not in algorithms_table.ALGORITHMS:
        continue
      path = folder / f"{name}_{comparison}.svg"
      _draw(runs, name, path)
      found[name].append((path.name, _text(runs, name, about, file)))
  return dict(found)


def _draw(runs, name, path) -> None:
  """This method in colour over the others of the comparison in grey."""
  plot = figure.Figure(figsize=(6.4, 3.2))
  axes = plot.add_axes((0.1, 0.15, 0.88, 0.82))
  for method in sorted({run["method"] for run in runs} - {name}):
    updates, success = _curves(runs, method)
    axes.plot(updates, success.mean(0), color="0.8", linewidth=1)
  updates, success = _curves(runs, name)
  axes.fill_between(
    updates, success.min(0), success.max(0), color="C0", alpha=0.2, linewidth=0
  )
  axes.plot(updates, success.mean(0), color="C0", linewidth=2, label=name)
  axes.set(xlabel="updates", ylabel="greedy success on unseen tasks")
  axes.legend(frameon=False, loc="upper left")
  axes.spines[["top", "right"]].set_visible(False)
  plot.savefig(path, metadata={"Date": None})


def _curves(runs, method):
  """The updates that all seeds were evaluated at, and [seeds, updates]."""
  own = [dict(run["curve"]) for run in runs if run["method"] == method]
  updates = sorted(set.intersection(*(set(curve) for curve in own)))
  return updates, np.array([[curve[u] for u in updates] for curve in own])


def _text(runs, name, about, file) -> str:
  own = [run for run in runs if run["method"] == name]
  dates = sorted(run["date"][:10] for run in own)
  when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
  commits = ", ".join(sorted({run["commit"][:7] for run in own}))
  machines = " and ".join(sorted({run["hardware"] for run in own}))
  return (
    f"In {about}: mean of {len(own)} seeds, the band from the lowest to the "
    f"highest, and the other methods of that comparison in grey. {machines}, "
    f"{when}, commit {commits}; the runs are in `docs/compare/{file.name}`, "
    "and [the comparison](../comparison.md) says what follows from them."
  )
