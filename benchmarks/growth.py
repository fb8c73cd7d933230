"""How an update grows with its tokens: time, packing, memory.

  python benchmarks/growth.py [--quick] [--plot FILE]

Batches of 2 to 64 thousand stored tokens (10 turns of 100 tokens an episode,
groups of four, rows of 1,024), micro model, packed and tree. Time is fitted by
a + b n, relative errors weighing the same; "off" is what a point differs from
its fit. Memory is what the compiler reserves beside the arguments, and the
arguments themselves. The last line is one JSON object. Compare within one run
only.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import layouts
import numpy as np

from steppo_jax import algorithms, mesh, packing, run_folder, update
from steppo_jax import learner as learner_lib
from steppo_jax.models import presets, transformer

VOCAB, ROW = 512, 1024
MICROBATCH = 2


def measure(trajectories, layout, repeats):
  """One batch in one layout: seconds, bytes, tokens."""
  packs = []
  for _ in range(repeats):
    start = time.perf_counter()
    packed = packing.pack(
      trajectories,
      [0] * len(trajectories),
      packing.PackingConfig(layout=layout, row_length=ROW),
      num_parts=1,
      rows_multiple=MICROBATCH,
      pad_id=0,
    )
    packs.append(time.perf_counter() - start)
  model = presets.get("micro", VOCAB)
  devices = mesh.make_mesh(1)
  parts = learner_lib.make_parts(
    model,
    algorithms.get("steppo"),
    learner_lib.LearnerConfig(
      num_minibatches=1, microbatch_rows=MICROBATCH, critic_warmup=0
    ),
    devices,
    num_updates=100,
    seed=0,
  )
  state = learner_lib.init(parts, transformer.init(model, jax.random.key(0)))
  batch = learner_lib.put_batch(packed, devices)
  compiled = (
    jax.jit(functools.partial(update.update, parts))
    .lower(state, state.policy, batch)
    .compile()
  )
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(compiled(state, state.policy, batch))
    times.append(time.perf_counter() - start)
  memory = compiled.memory_analysis()
  return {
    "tokens": packed.unique_tokens,
    "rows": int(packed.rows_used.sum()),
    "update_s": statistics.median(times[1:]),
    "pack_s": statistics.median(packs),
    "temporary_mb": memory.temp_size_in_bytes / 1e6,
    "batch_mb": sum(x.nbytes for x in jax.tree.leaves(batch)) / 1e6,
  }


def fit(points, key):
  """Least squares of a + b n in relative errors; sets "KEY_off"."""
  n = np.array([p["tokens"] for p in points], float)
  t = np.array([p[key] for p in points])
  design = np.stack([1 / t, n / t], axis=1)
  a, b = np.linalg.lstsq(design, np.ones(len(t)), rcond=None)[0]
  for point, off in zip(points, t / (a + b * n) - 1, strict=True):
    point[f"{key}_off"] = float(off)
  return float(max(abs(p[f"{key}_off"]) for p in points))


def plot(path, found):
  """Update seconds and packing seconds against tokens."""
  from matplotlib import figure

  drawn = figure.Figure(figsize=(8, 3), layout="constrained")
  for axes, key, label in zip(
    drawn.subplots(1, 3),
    ("update_s", "pack_s", "temporary_mb"),
    ("update, s", "packing, s", "temporary memory, MB"),
    strict=True,
  ):
    for layout, points in found.items():
      axes.plot(
        [p["tokens"] / 1000 for p in points], [p[key] for p in points],
        marker="o", label=layout,
      )  # fmt: skip
    axes.set(xlabel="thousand stored tokens", title=label, ylim=(0, None))
    axes.legend()
  drawn.savefig(path, dpi=100)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="up to 8k tokens")
  parser.add_argument("--plot", help="file for a plot")
  args = parser.parse_args()
  groups = (0.5, 1, 2) if args.quick else (0.5, 1, 2, 4, 8, 16)
  repeats = 1 if args.quick else 3
  found = {"packed": [], "tree": []}
  print(
    f"{'layout':7} {'tokens':>7} {'rows':>5} {'update s':>9} {'pack ms':>8}"
    f" {'temp MB':>8} {'batch MB':>9}"
  )
  for count in groups:
    episodes = layouts.synthetic(max(1, int(count)), VOCAB, rebuilt=False)
    episodes = episodes[: int(count * layouts.GROUP)]
    for layout, points in found.items():
      here = measure(episodes, layout, repeats)
      points.append(here)
      print(
        f"{layout:7} {here['tokens']:7} {here['rows']:5}"
        f" {here['update_s']:9.3f} {here['pack_s'] * 1e3:8.2f}"
        f" {here['temporary_mb']:8.1f} {here['batch_mb']:9.2f}"
      )
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "update_off": {k: fit(v, "update_s") for k, v in found.items()},
    "pack_off": {k: fit(v, "pack_s") for k, v in found.items()},
  }
  for layout, points in found.items():
    off = ", ".join(f"{p['update_s_off']:+.1%}" for p in points)
    print(f"{layout}: update off the fit by {off}")
  if args.plot:
    plot(args.plot, found)
  print(json.dumps(result | {"points": found}))


if __name__ == "__main__":
  main()
