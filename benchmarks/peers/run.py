"""Ours beside Google Tunix and transformers: one model, one machine, one run.

  python benchmarks/peers/run.py [--quick] [--peers NAME ...] [--out FOLDER]

Three kinds of work, the same for every side:

- decode: tokens after a prompt of 32, for several batch sizes.
- rollout: conversations in which each turn shows 80 tokens and samples 20. We
  keep what was read; Tunix's sampler and transformers' `generate` are given
  whole prompts, as their callers give them, and transformers also the cache of
  the turn before ("kept cache").
- update: one optimizer step of a clipped policy-gradient loss without critic on
  conversations of 10 turns. We pack each into one row; the baseline has one
  padded row a step, as public step-level trainers do; a row without padding
  and, where prompts only grow, a row a trajectory are told too.

The model is a random Llama of 5 million parameters in float32. Each side runs
in an environment and a process of its own, one after the other, on all cores.
Before times are compared, so are the log-probs of sampled tokens, the losses
and the norms of the gradients: a side that computes something else fails the
run. A side that cannot be installed or run is told with its reason.
Environments are made under `.bench/` when they are missing. FOLDER then holds
table.txt, peers.png and results.json. The last line is one JSON object. Compare
within one run only.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ("transformers", "tunix")
# Rounding of different orders of summation, far below any real difference.
LOGP_WITHIN, UPDATE_WITHIN = 1e-3, 1e-3
# For every side: memory is taken from the system in pages of 2 MB, where it
# offers them, so that touching large arrays for the first time costs less.
PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Pieces of work, and which row of a peer is the one to compare with.
KINDS = {"decode": "tokens/s", "rollout": "tokens/s", "update": "updates/s"}


def spec(quick):
  """Sizes of the model and of the work."""
  return {
    "model": {
      "vocab_size": 2048,
      "width": 256,
      "num_layers": 6,
      "num_heads": 8,
      "num_kv_heads": 4,
      "head_dim": 32,
      "mlp_width": 704,
      "rope_theta": 1e6,
      "norm_eps": 1e-6,
    },
    "decode": {
      "batches": [1, 8] if quick else [1, 8, 64],
      "observe": 32,
      "sample": 32 if quick else 128,
    },
    "rollout": {
      "turns": [4] if quick else [10, 20],
      "episodes": 4 if quick else 8,
      "observe": 80,
      "sample": 20,
    },
    "update": {
      "trajectories": 2 if quick else 4,
      "turns": 4 if quick else 10,
      "observe": 80,
      "sample": 20,
      "clip_low": 0.2,
      "clip_high": 0.28,
      "learning_rate": 1e-5,
      "max_grad_norm": 1.0,
    },
    "repeats": 2 if quick else 5,
    "budget_s": 10 if quick else 60,
    "threads": os.cpu_count(),
  }


def environment(name, folder):
  """The interpreter of a peer, whose environment is made when missing.

  Raises:
    RuntimeError: its packages cannot be installed; the last line of pip.
  """
  wanted = HERE / f"requirements-{name}.txt"
  home = folder / name
  python = home / "bin" / "python"
  made = home / "made-of"
  digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
  if made.is_file() and made.read_text() == digest:
    return python
  print(f"installing {name} into {home}", file=sys.stderr, flush=True)
  venv.create(home, with_pip=True, clear=True)
  command = [str(python), "-m", "pip", "install", "-q", "-r", str(wanted)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ["pip said nothing"]
    raise RuntimeError(f"cannot be installed: {lines[-1]}")
  made.write_text(digest)
  return python


def run_side(python, script, work):
  """Runs one script on a folder of work.

  Raises:
    RuntimeError: it ended badly; its last line.
  """
  command = [str(python), str(HERE / script), str(work)]
  # Ours is not installed where its tree is used without `pip install`.
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  own = {"PYTHONPATH": path} if python == sys.executable else {}
  try:
    done = subprocess.run(
      command, stderr=subprocess.PIPE, text=True, check=False,
      env=PAGES | os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"} | own,
    )  # fmt: skip
  except OSError as error:
    raise RuntimeError(f"cannot be run: {error}") from error
  sys.stderr.write(done.stderr)
  if done.returncode:
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    raise RuntimeError(f"cannot be run: {lines[-1]}")


def read(work, names, reasons):
  """What each side wrote; a missing file is one more reason."""
  found = {}
  for name in names:
    path = work / f"{name}.json"
    if name not in reasons and path.is_file():
      found[name] = json.loads(path.read_text())
  return found


def differences(found):
  """What sides computed that is not what ours did."""
  ours, wrong = found["ours"], []
  mine = next(r for r in ours["rows"] if r["kind"] == "update")
  for name, side in found.items():
    gap = side.get("logp_difference")
    if gap is None:
      wrong.append(f"{name}: no log-probs: {side.get('logp_error')}")
    elif not gap <= LOGP_WITHIN:
      wrong.append(f"{name}: log-probs differ by {gap:.2g}")
    for row in side["rows"]:
      if row["kind"] != "update" or "error" in row or "error" in mine:
        continue
      for key in ("loss", "grad_norm"):
        gap = abs(row[key] - mine[key]) / max(abs(mine[key]), 1e-12)
        if not gap <= UPDATE_WITHIN:
          wrong.append(f"{row['row']}: {key} differs by {gap:.2g} of ours")
  return wrong


def compare(found):
  """Lines of the table: work, row, value, unit and ours over the row's."""
  lines = []
  mine = {
    (r["kind"], r["size"]): r for r in found["ours"]["rows"] if "error" not in r
  }
  for side in found.values():
    for row in side["rows"]:
      kind, size = row["kind"], row["size"]
      line = {"kind": kind, "size": size, "row": row["row"]}
      if "error" in row:
        lines.append(line | {"error": row["error"]})
        continue
      line |= {"value": speed(row), "unit": KINDS[kind], "s": row["median_s"]}
      if (kind, size) in mine:
        line["ours_over"] = row["median_s"] / mine[kind, size]["median_s"]
      lines.append(line)
  order = list(KINDS)
  return sorted(lines, key=lambda x: (order.index(x["kind"]), x["size"]))


def speed(row):
  return row.get("tokens_per_s", 1 / row["median_s"])


def said(value):
  return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def title(line):
  unit = {"decode": "batch", "rollout": "turns", "update": "turns"}
  return f"{line['kind']}, {unit[line['kind']]} {line['size']}"


def table(lines, reasons):
  """The comparison as text."""
  out = [f"{'work':18} {'side':42} {'speed':>18} {'ours / it':>9}"]
  for line in lines:
    start = f"{title(line):18} {line['row']:42}"
    if "error" in line:
      out.append(f"{start} cannot: {line['error']}")
      continue
    value = f"{said(line['value'])} {line['unit']}"
    ratio = f"{line['ours_over']:.2f}" if "ours_over" in line else "-"
    out.append(f"{start} {value:>18} {ratio:>9}")
  out += [f"{name}: {reason}" for name, reason in reasons.items()]
  return "\n".join(out)


def plot(path, lines):
  """Speeds beside each other, one panel a piece of work."""
  from matplotlib import figure

  lines = [line for line in lines if "error" not in line]
  titles = list(dict.fromkeys(map(title, lines)))
  drawn = figure.Figure(figsize=(8, 1.1 + 1.1 * len(titles)))
  drawn.set_layout_engine("constrained")
  panels = drawn.subplots(len(titles), 1, squeeze=False)[:, 0]
  for axes, name in zip(panels, titles, strict=True):
    own = [line for line in lines if title(line) == name]
    ours = [line["row"].startswith("steppo_jax") for line in own]
    bars = axes.barh(
      [line["row"] for line in own], [line["value"] for line in own],
      color=["tab:blue" if mine else "tab:gray" for mine in ours],
    )  # fmt: skip
    axes.bar_label(
      bars, [f" {said(line['value'])}" for line in own], fontsize=8
    )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(f"{name}, {own[0]['unit']}", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
  drawn.savefig(path, dpi=80)


def main(arguments=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small work")
  parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
  parser.add_argument("--out", default="runs/peers", help="folder of results")
  parser.add_argument("--envs", default=".bench", help="folder of environments")
  args = parser.parse_args(arguments)
  work = pathlib.Path(args.out).absolute()
  envs = pathlib.Path(args.envs).absolute()
  reasons = measure(spec(args.quick), args.peers, work, envs)
  return finish(work, ("ours", *args.peers), reasons)


def measure(sizes, peers, work, envs):
  """Lets every side do the work; each writes NAME.json into `work`.

  Args:
    sizes: As `spec` gives them.
    peers: Names of other sides.
    work: Folder of the results, made here.
    envs: Folder of the peers' environments.

  Returns:
    Why a side could not be run, by its name.
  """
  work.mkdir(parents=True, exist_ok=True)
  for old in work.glob("*.json"):
    old.unlink()
  (work / "spec.json").write_text(json.dumps(sizes, indent=2))
  run_side(sys.executable, "prepare.py", work)
  run_side(sys.executable, "ours.py", work)
  reasons = {}
  for name in peers:
    try:
      run_side(environment(name, envs), f"peer_{name}.py", work)
    except RuntimeError as error:
      reasons[name] = str(error)
  return reasons


def finish(work, names, reasons):
  """Writes and prints what was found; 1 if sides differ, else 0."""
  from steppo_jax.storage import folder as run_folder

  found = read(work, names, reasons)
  lines, wrong = compare(found), differences(found)
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "versions": {name: side["versions"] for name, side in found.items()},
    "rows": lines,
    "not_run": reasons,
    "wrong": wrong,
  }
  head = "\n".join(f"{k:9} {result[k]}" for k in ("hardware", "commit"))
  for name, versions in result["versions"].items():
    said = ", ".join(f"{k} {v}" for k, v in versions.items())
    head += f"\n{name:13} {said}"
  text = f"{head}\n\n{table(lines, reasons)}\n"
  (work / "table.txt").write_text(text)
  (work / "results.json").write_text(json.dumps(result, indent=2) + "\n")
  plot(work / "peers.png", lines)
  print(text)
  print(f"written: {work / 'table.txt'}, results.json, peers.png\n")
  for line in wrong:
    print(f"NOT THE SAME COMPUTATION: {line}")
  print(json.dumps(result))
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
