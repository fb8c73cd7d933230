"""How an update grows with its tokens: time, packing, memory.

  python benchmarks/growth.py [--quick] [--plot FILE]

Batches of 2 to 64 thousand stored tokens, micro model, rows of 2,048 tokens,
one row a microbatch. "packed" holds episodes of 10 turns of 100 tokens whose
prompts extend each other; "tree" pairs of episodes of one task whose prompts
are rebuilt: a static part, the last turn, what is seen. Each quantity is fitted
by a + b tokens, relative errors weighing the same; "off" is how far a point is
from its fit. Times are medians over rounds in which the sizes take turns.
Packing memory is the peak of what Python and NumPy hold. The update's is what
the compiler reserves: temporary memory, and with the arguments (weights,
optimizers, batch) all. The last line is one JSON object. Compare within one run
only.
"""

import argparse
import json
import statistics
import time
import tracemalloc

import jax
import numpy as np
import synthetic

from steppo_jax.models import presets
from steppo_jax.storage import folder as run_folder

VOCAB, ROW = 512, 2048
# Two episodes fill a row in each layout: 2,000 and 2,000 tokens.
PAIR = {
  "packed": {"turns": 10},
  "tree": {"turns": 6, "static": 160, "window": 1, "common": 1},
}
FITTED = ("update_s", "pack_s", "pack_mb", "memory_mb")


def pack(layout, rows, options, repeats):
  """A batch of some rows; what packing took in seconds and megabytes."""
  made = synthetic.conversations(rows, VOCAB, group=2, **PAIR[layout])
  times = []
  # For a single row the compiler drops the loop and keeps more at a time.
  allocated = max(2, rows)
  for _ in range(repeats):
    packed, seconds = synthetic.pack(made, layout, ROW, options, allocated)
    times.append(seconds)
  tracemalloc.start()
  packed, _ = synthetic.pack(made, layout, ROW, options, allocated)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return packed, {
    "tokens": packed.unique_tokens,
    "rows": int(packed.rows_used.sum()),
    "pack_s": statistics.median(times),
    "pack_mb": peak / 1e6,
  }


def measure(model, layout, sizes, rounds):
  """The points of one layout."""
  options = synthetic.options(microbatch_rows=1)
  points, batches, shapes, programs = [], [], [], {}
  for rows in sizes:
    packed, point = pack(layout, rows, options, 5)
    batch = synthetic.put(packed)
    shape = tuple(x.shape for x in jax.tree.leaves(batch))
    if shape not in programs:
      programs[shape] = synthetic.compiled(model, options, batch)
    program = programs[shape]
    point["temporary_mb"] = program.temporary_bytes / 1e6
    point["memory_mb"] = (
      program.temporary_bytes + program.argument_bytes
    ) / 1e6
    points.append(point | {"times": []})
    batches.append(batch)
    shapes.append(shape)
  for counted in (False, *[True] * rounds):
    for i, point in enumerate(points):
      start = time.perf_counter()
      shape = shapes[i]
      programs[shape] = synthetic.step(programs[shape], batches[i])
      if counted:
        point["times"].append(time.perf_counter() - start)
  for point in points:
    point["update_s"] = statistics.median(point.pop("times"))
  return points


def fit(points, key):
  """Least squares of a + b tokens in relative errors; sets "KEY_off"."""
  n = np.array([p["tokens"] for p in points], float)
  y = np.array([p[key] for p in points])
  design = np.stack([1 / y, n / y], axis=1)
  a, b = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
  for point, off in zip(points, y / (a + b * n) - 1, strict=True):
    point[f"{key}_off"] = float(off)
  return float(max(abs(p[f"{key}_off"]) for p in points))


def plot(path, found):
  """Time, packing time and memory against tokens."""
  from matplotlib import figure

  drawn = figure.Figure(figsize=(8, 2.6), layout="constrained")
  for axes, key, title in zip(
    drawn.subplots(1, 3),
    ("update_s", "pack_s", "memory_mb"),
    ("update, s", "packing, s", "memory of the update, MB"),
    strict=True,
  ):
    for layout, points in found.items():
      axes.plot(
        [p["tokens"] / 1000 for p in points], [p[key] for p in points],
        marker="o", markersize=4, label=layout,
      )  # fmt: skip
    axes.set(xlabel="thousand stored tokens", title=title)
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.legend()
  drawn.savefig(path, dpi=80)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="up to 8k tokens")
  parser.add_argument("--plot", help="file for a plot")
  args = parser.parse_args()
  # The small model compiles in half the time.
  name, sizes, rounds = "micro", (1, 2, 4, 8, 16, 32), 3
  if args.quick:
    name, sizes, rounds = "nano", (1, 2, 4), 3
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "model": name,
  }
  print("\n".join(f"{key:10} {value}" for key, value in result.items()))
  print(
    f"\n{'layout':7} {'tokens':>7} {'rows':>5} {'update s':>9} {'pack ms':>8}"
    f" {'pack MB':>8} {'temp MB':>8} {'all MB':>8}"
  )
  model, found = presets.get(name, VOCAB), {}
  for layout in PAIR:
    found[layout] = measure(model, layout, sizes, rounds)
    for p in found[layout]:
      print(
        f"{layout:7} {p['tokens']:7} {p['rows']:5} {p['update_s']:9.3f}"
        f" {p['pack_s'] * 1e3:8.2f} {p['pack_mb']:8.2f}"
        f" {p['temporary_mb']:8.1f} {p['memory_mb']:8.1f}"
      )
  print()
  for key in FITTED:
    result[f"{key}_off"] = {k: fit(v, key) for k, v in found.items()}
    for layout, points in found.items():
      off = ", ".join(f"{p[f'{key}_off']:+.1%}" for p in points)
      print(f"{key:12} {layout:7} off a line by {off}")
  if args.plot:
    plot(args.plot, found)
  print(json.dumps(result | {"points": found}))


if __name__ == "__main__":
  main()
