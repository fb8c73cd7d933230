"""A real model's size beside transformers + torch, on the same cores, one run.

  python benchmarks/models.py [--quick] [--model smollm2_135m] [--out FOLDER]

The model has the sizes of a preset and random weights, which cost the same time
as trained ones, in float32. Three kinds of work, as in `peers/run.py`, which
does them and refuses a side that computes something else:

- decode: tokens/s after a prompt of 32, at batch 1, 8 and 64.
- update: one optimizer step on the same tokens, a row a trajectory, on either
  side; tokens/s, and the share of the peak ("MFU"): 6 FLOPs a parameter of the
  layers and a token, 12 H D a layer and a pair of tokens that see each other
  (2 forward, 4 backward), 6 W V a sampled token, over a float32 product of
  2,048 x 2,048 measured before and after. Rows of one step, padded, are what
  public step-level trainers compute.
- rollout: conversations of several turns, where we keep what was read.

FOLDER then holds table.txt, peers.png and results.json. Compare within one run
only.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "peers"))

import machine
import run as peers

from steppo_jax.models import presets

FIELDS = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads",
          "head_dim", "mlp_width", "rope_theta", "norm_eps")  # fmt: skip


def spec(name, quick):
  """Sizes of the model and of the work; see `peers/run.py`."""
  model = presets.get(name)
  sizes = peers.spec(quick)
  sizes["model"] = {field: getattr(model, field) for field in FIELDS}
  sizes["decode"] |= {"batches": [1, 8] if quick else [1, 8, 64], "sample": 32}
  sizes["rollout"] |= {"turns": [3 if quick else 8], "episodes": 2}
  # One trajectory alone would have no advantage, and the update no gradient.
  sizes["update"] |= {"trajectories": 2, "turns": 2 if quick else 5}
  return sizes | {"repeats": 1 if quick else 3, "budget_s": 90}


def update_flops(sizes):
  """FLOPs that the tokens of one update need; see above."""
  model, update = sizes["model"], sizes["update"]
  size = update["observe"] + update["sample"]
  length = update["turns"] * size
  heads = model["num_heads"] * model["head_dim"]
  kv = model["num_kv_heads"] * model["head_dim"]
  layer = model["width"] * (2 * heads + 2 * kv + 3 * model["mlp_width"])
  pairs = length * (length + 1) // 2
  sampled = update["turns"] * update["sample"]
  return update["trajectories"] * (
    6 * model["num_layers"] * layer * length
    + 12 * model["num_layers"] * heads * pairs
    + 6 * sampled * model["width"] * model["vocab_size"]
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small work")
  parser.add_argument("--model", default="smollm2_135m", help="preset")
  parser.add_argument("--out", default="runs/models", help="folder of results")
  parser.add_argument("--envs", default=".bench", help="folder of environments")
  args = parser.parse_args()
  sizes = spec(args.model, args.quick)
  work = pathlib.Path(args.out).absolute()
  before, _ = machine.peaks()
  envs = pathlib.Path(args.envs).absolute()
  reasons = peers.measure(sizes, ("transformers",), work, envs)
  after, _ = machine.peaks()
  status = peers.finish(work, ("ours", "transformers"), reasons)
  update = sizes["update"]
  tokens = (
    update["trajectories"]
    * update["turns"]
    * (update["observe"] + update["sample"])
  )
  flops, peak = update_flops(sizes), max(before, after)
  print(f"peak {before / 1e9:.0f} and {after / 1e9:.0f} GFLOP/s")
  rows = json.loads((work / "results.json").read_text())["rows"]
  for row in rows:
    if row["kind"] == "update" and "s" in row:
      print(
        f"{row['row']:42} {tokens / row['s']:8.1f} tokens/s  "
        f"{flops / row['s'] / peak:6.1%} of the peak"
      )
  return status


if __name__ == "__main__":
  sys.exit(main())
