"""Seconds to the first sampled token, of this build and of an earlier one.

  python benchmarks/cold_start.py [--quick] [--commit ffc004e] [--layers N]

A process of each build, one after the other and each with an empty compile
cache: it imports JAX, makes SmolLM2-135M's sizes with random weights and 16
slots of 4,096 positions, compiles all programs as a run does, and samples one
token after a prompt of 1,000. `seconds` is all of that, from the start of the
process; `seconds_first_use` that of this build without the warm-up, where it
compiles what the token needs. `programs` are the sampler's, `ratio` is
`seconds_before / seconds`. The last line is one JSON object.

The whole takes more than an hour on two cores, most of it the earlier build's;
`--layers 2` says in minutes how the ratio stands.
"""

import argparse
import json
import resource
import tempfile
import time

import builds
import numpy as np


def start(model, layers, slots, context, prompt, warm_up):
  """Worker: programs and CPU seconds until the first token."""
  from steppo_jax import types

  engine = builds.make_engine(
    model, layers, slots=slots, context=context, max_new_tokens=16,
    vocab=1024, lengths=None,
  )  # fmt: skip
  if warm_up:
    engine.warm_up()
  ids = np.random.default_rng(0).integers(3, 512, prompt).astype(np.int32)
  (answer,) = engine.generate([types.Request("a", ids, (0,), 1, 1.0)])
  used = resource.getrusage(resource.RUSAGE_SELF)
  return {
    "programs": engine.compiles,
    "cpu": used.ru_utime + used.ru_stime,
    "token": int(answer.response_ids[0]),
  }


def measure(build, sizes, warm_up):
  """What a fresh process of one build takes."""
  with tempfile.TemporaryDirectory() as cache:
    began = time.perf_counter()
    worker = builds.Worker(__file__, build, JAX_COMPILATION_CACHE_DIR=cache)
    found = worker.ask(**sizes, warm_up=warm_up)
    found["seconds"] = time.perf_counter() - began
    worker.close()
  print(build, found, flush=True)
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="a small model")
  parser.add_argument("--smallest", action="store_true", help="for tests")
  parser.add_argument("--commit", default=builds.EARLIER)
  parser.add_argument("--layers", type=int, default=0)
  parser.add_argument("--worker", action="store_true", help="used by itself")
  args = parser.parse_args()
  if args.worker:
    builds.serve(start)
    return
  model, slots, context, prompt = "smollm2_135m", 16, 4096, 1000
  if args.quick:
    model, context, prompt = "nano", 1024, 300
  if args.smallest:
    model, slots, context, prompt = "nano", 1, 64, 9
  sizes = dict(model=model, layers=args.layers or int(args.smallest),
               slots=slots, context=context, prompt=prompt)  # fmt: skip
  with builds.worktree(args.commit) as earlier:
    now = measure(builds.ROOT, sizes, warm_up=True)
    before = measure(earlier, sizes, warm_up=True)
    first = measure(builds.ROOT, sizes, warm_up=False)
  result = sizes | {
    "commit_before": args.commit,
    "programs": now["programs"],
    "programs_before": before["programs"],
    "seconds": now["seconds"],
    "seconds_before": before["seconds"],
    "ratio": before["seconds"] / now["seconds"],
    "cpu": now["cpu"],
    "cpu_before": before["cpu"],
    "programs_first_use": first["programs"],
    "seconds_first_use": first["seconds"],
    "ratio_first_use": before["seconds"] / first["seconds"],
    "same_token": now["token"] == before["token"],
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
