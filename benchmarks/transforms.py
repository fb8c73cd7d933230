"""Transforms of a whole update, in this build and an earlier one.

  python benchmarks/transforms.py [--quick] [--commit ffc004e] [--repeats N]

A decoder of one layer of width 16 and StepPO on a packed batch of 8 episodes of
4 turns. `compile_cpu_s` are the CPU seconds in which the gradient of what one
update makes of the policy, in every reward of the batch, is traced and compiled
without a cache; `plain_compile_cpu_s` those of the update itself.
`vmap_over_loop` is the time of `vmap` over eight learning rates over that of
the eight updates one after the other, each program compiled once and all of
them asked in turn: medians. `..._before` are the earlier build's. The last
line is one JSON object.
"""

import argparse
import dataclasses
import functools
import json
import os
import resource
import statistics
import sys
import tempfile
import time

import builds

RUNS = 8
SIZES = dict(width=16, turns=4, groups=4, row_length=512)
SMALLEST = dict(width=16, turns=1, groups=1, row_length=128)


def setting(width, turns, groups, row_length, differentiable=False):
  """(update of a learning rate and a batch, the batch)."""
  import synthetic

  from steppo_jax.models import transformer

  model = transformer.ModelConfig(
    vocab_size=64, width=width, num_layers=1, num_heads=2, num_kv_heads=1,
    head_dim=8, mlp_width=2 * width,
  )  # fmt: skip
  config = synthetic.options(microbatch_rows=2)
  made = synthetic.conversations(groups, 64, group=2, turns=turns)
  batch = synthetic.put(synthetic.pack(made, "packed", row_length, config)[0])
  table = getattr(synthetic, "algorithms_table", None) or synthetic.algorithms
  row = dataclasses.replace(table.get("steppo"), kl_coef=0.0)
  make = getattr(synthetic.learner, "make_spec", None)
  make = make or synthetic.learner.make_parts
  policy = synthetic.parameters(model)

  def update(rate, batch):
    spec = make(
      model, row, dataclasses.replace(config, learning_rate=rate),
      synthetic.mesh.make_mesh(1), num_updates=100, seed=0,
      differentiable=differentiable,
    )  # fmt: skip
    state = synthetic.learner.init(spec, policy)
    return synthetic.update_lib.update(spec, state, None, batch, None)[0]

  return update, batch


def cpu() -> float:
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def compile_cpu_s(*, differentiate: bool, **sizes):
  """Worker: CPU and wall seconds of tracing and compiling one program."""
  import jax

  update, batch = setting(**sizes, differentiable=differentiate)

  def made(reward):
    table = batch.table.replace(reward=reward)
    state = update(1e-3, batch._replace(table=table))
    return sum(x.sum() for x in jax.tree.leaves(state.policy))

  began = time.perf_counter(), cpu()
  program = jax.grad(made) if differentiate else made
  jax.jit(program).lower(batch.table.reward).compile()
  return {"cpu": cpu() - began[1], "seconds": time.perf_counter() - began[0]}


@functools.cache
def many(**sizes):
  """Compiled programs: one update, and `RUNS` of them under one `vmap`."""
  import jax
  import jax.numpy as jnp

  update, batch = setting(**sizes)
  rates = jnp.linspace(1e-4, 1e-3, RUNS)
  one = jax.jit(update).lower(rates[0], batch).compile()
  mapped = jax.jit(jax.vmap(update, in_axes=(0, None)))
  every = mapped.lower(rates, batch).compile()
  programs = {
    "loop": lambda: [one(rate, batch) for rate in rates],
    "vmap": lambda: every(rates, batch),
  }
  for program in programs.values():  # The first run does what no other does.
    jax.block_until_ready(program())
  return programs


def run(kind, **sizes):
  """Worker: seconds of eight updates."""
  import jax

  program = many(**sizes)[kind]
  start = time.perf_counter()
  jax.block_until_ready(program())
  return time.perf_counter() - start


def answer(what, **question):
  """Worker."""
  return compile_cpu_s(**question) if what == "compile" else run(**question)


def measure(builds_at, sizes, repeats):
  """All numbers of both builds, by name."""
  found = {}
  for suffix, build in builds_at.items():
    for name, differentiate in (("compile", True), ("plain_compile", False)):
      with tempfile.TemporaryDirectory() as cache:
        worker = builds.Worker(__file__, build, JAX_COMPILATION_CACHE_DIR=cache)
        told = worker.ask(what="compile", differentiate=differentiate, **sizes)
        worker.close()
      found[f"{name}_cpu_s{suffix}"] = told["cpu"]
      found[f"{name}_s{suffix}"] = told["seconds"]
  workers = {
    suffix: builds.Worker(__file__, build)
    for suffix, build in builds_at.items()
  }
  seconds = {(kind, s): [] for kind in ("loop", "vmap") for s in builds_at}
  for _ in range(repeats):
    for (kind, suffix), times in seconds.items():
      times.append(workers[suffix].ask(what="run", kind=kind, **sizes))
  for suffix, worker in workers.items():
    worker.close()
    loop, vmap = (
      statistics.median(seconds[kind, suffix]) for kind in ("loop", "vmap")
    )
    found |= {f"loop_s{suffix}": loop, f"vmap_over_loop{suffix}": vmap / loop}
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="fewer repeats")
  parser.add_argument("--smallest", action="store_true", help="for tests")
  parser.add_argument("--commit", default=builds.EARLIER)
  parser.add_argument("--repeats", type=int, default=0)
  parser.add_argument("--worker", action="store_true", help="used by itself")
  args = parser.parse_args()
  if args.worker:
    # `synthetic` of the build that is measured, in whose folder this runs.
    sys.path.insert(0, os.path.join(os.getcwd(), "benchmarks"))
    builds.serve(answer)
    return
  repeats = args.repeats or (1 if args.smallest else 5 if args.quick else 20)
  sizes = SMALLEST if args.smallest else SIZES
  with builds.worktree(args.commit) as earlier:
    found = measure({"": builds.ROOT, "_before": earlier}, sizes, repeats)
  for name, value in found.items():
    print(f"{name:28} {value:.4g}")
  print(json.dumps({"commit_before": args.commit, "repeats": repeats} | found))


if __name__ == "__main__":
  main()
