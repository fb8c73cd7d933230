"""What a critic costs: an update of StepPO over one of GRPO on the same batch.

  python benchmarks/critic.py [--quick] [--commit ffc004e] [--repeats N]

Episodes of 10 turns of 100 tokens, packed, one optimizer step for each network,
no reference policy, at 20 and 135 million parameters, random weights. GRPO has
no critic. StepPO is timed with the first layers of the policy as its critic
(`learner.critic_layers`, 1 of 7 and 2 of 30), with adapters of rank 16 on them
(`learner.critic_lora`), with a copy of all of them, and with a head on the
policy's own layers (`learner.critic_trunk=policy`); the earlier build has GRPO
and the copy. A process of each build is asked in turn,
so that what else the machine does falls on all of them alike.

`steppo_over_grpo` is the median of the cheap critic over that of GRPO,
`steppo_over_grpo_before` the earlier build's of its only critic over its own
GRPO; both are those of the size at which the former is larger. The last line is
one JSON object.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time

import builds

# By preset: layers of the cheap critic, vocabulary, groups of two episodes.
SIZES = {"base_20m": (1, 512, 2), "smollm2_135m": (2, 49_152, 1)}
QUICK = {"small": (1, 512, 1)}
SMALLEST = {"nano": (1, 32, 1)}
TURNS, ROW = 10, 1024
GRPO, CHEAP, COPY, POLICY = "grpo", "steppo", "steppo_copy", "steppo_policy"
ADAPTERS = "steppo_adapters"


def changes_of(kind: str, critic_layers: int) -> dict:
  """Options of the learner that make a kind of update."""
  if kind == CHEAP:
    return {"critic_layers": critic_layers}
  if kind == ADAPTERS:
    from steppo_jax.models.options import LoraConfig

    return {
      "critic_trunk": "policy", "critic_layers": critic_layers,
      "critic_lora": LoraConfig(rank=16),
    }  # fmt: skip
  return {"critic_trunk": "policy"} if kind == POLICY else {}


@functools.cache
def program(kind, preset, critic_layers, vocab, groups, turns, row_length):
  """[compiled update with its state], batch, seconds of compiling."""
  import dataclasses

  import synthetic

  from steppo_jax.models import presets

  model = presets.get(preset, vocab)
  config = synthetic.options(
    microbatch_rows=1, **changes_of(kind, critic_layers)
  )
  table = getattr(synthetic, "algorithms_table", None) or synthetic.algorithms
  make = getattr(synthetic.learner, "make_spec", None)
  make = make or synthetic.learner.make_parts
  row = dataclasses.replace(table.get(kind.partition("_")[0]), kl_coef=0.0)
  synthetic.parts_of = lambda model, config: make(
    model, row, config, synthetic.mesh.make_mesh(1), num_updates=100, seed=0
  )
  # Small ids: what is looked up does not matter, the vocabulary's size does.
  made = synthetic.conversations(groups, min(vocab, 512), group=2, turns=turns)
  batch = synthetic.put(synthetic.pack(made, "packed", row_length, config)[0])
  compiled = synthetic.compiled(model, config, batch)
  # The first run does what no other does.
  return [synthetic.step(compiled, batch)], batch, compiled.compile_s


def answer(**question):
  """Worker: seconds of one update, and of compiling it."""
  import synthetic

  held, batch, compile_s = program(**question)
  start = time.perf_counter()
  held[0] = synthetic.step(held[0], batch)
  return {"seconds": time.perf_counter() - start, "compile_s": compile_s}


def measure(workers, preset, size, shape, repeats):
  """Medians of all updates at one size, asked for in turn."""
  critic_layers, vocab, groups = size
  question = dict(preset=preset, critic_layers=critic_layers, vocab=vocab,
                  groups=groups, **shape)  # fmt: skip
  asked = [
    ("", GRPO), ("_before", GRPO), ("", CHEAP), ("_before", COPY), ("", COPY),
    ("", POLICY), ("", ADAPTERS),
  ]  # fmt: skip
  seconds = {pair: [] for pair in asked}
  for turn in range(repeats):
    for build, kind in asked:
      found = workers[build].ask(kind=kind, **question)
      seconds[build, kind].append(found["seconds"])
      if not turn:
        print(f"{preset} {kind}{build}: compiled in {found['compile_s']:.1f} s",
              file=sys.stderr)  # fmt: skip
  median = {pair: statistics.median(times) for pair, times in seconds.items()}
  over = lambda build, kind: median[build, kind] / median[build, GRPO]
  return {
    "critic_layers": critic_layers,
    "grpo_s": median["", GRPO],
    "grpo_before_s": median["_before", GRPO],
    "steppo_over_grpo": over("", CHEAP),
    "steppo_over_grpo_before": over("_before", COPY),
    "copy_over_grpo": over("", COPY),
    "policy_trunk_over_grpo": over("", POLICY),
    "adapters_over_grpo": over("", ADAPTERS),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="a small model")
  parser.add_argument("--smallest", action="store_true", help="for tests")
  parser.add_argument("--commit", default=builds.EARLIER)
  parser.add_argument("--repeats", type=int, default=0)
  parser.add_argument("--model", nargs="+", choices=sorted(SIZES))
  parser.add_argument("--worker", action="store_true", help="used by itself")
  args = parser.parse_args()
  if args.worker:
    # `synthetic` of the build that is measured, in whose folder this runs.
    sys.path.insert(0, os.path.join(os.getcwd(), "benchmarks"))
    builds.serve(answer)
    return
  sizes = SMALLEST if args.smallest else QUICK if args.quick else SIZES
  sizes = {name: sizes[name] for name in args.model or sizes}
  shape = dict(turns=TURNS, row_length=ROW)
  if args.smallest:
    shape = dict(turns=1, row_length=128)
  repeats = args.repeats or (1 if args.smallest else 5)
  found = {}
  with builds.worktree(args.commit) as earlier:
    for preset, size in sizes.items():
      # A process each: the memory of one size is free before the next begins.
      workers = {
        "": builds.Worker(__file__, builds.ROOT),
        "_before": builds.Worker(__file__, earlier),
      }
      found[preset] = measure(workers, preset, size, shape, repeats)
      for worker in workers.values():
        worker.close()
      print(f"\n{preset}")
      for name, value in found[preset].items():
        print(f"  {name:24} {value:.4g}")
  dearest = max(found.values(), key=lambda one: one["steppo_over_grpo"])
  keys = "steppo_over_grpo", "steppo_over_grpo_before"
  result = {
    "commit_before": args.commit,
    "repeats": repeats,
    **{key: dearest[key] for key in keys},
    "sizes": found,
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
