"""What sharing prefixes saves: one batch in three layouts, one update of each.

  python benchmarks/layouts.py [--quick]

Several batches, in one run. "household": real episodes of the committed warm
start in groups of four. "synthetic": episodes of 10 turns of 100 tokens, one
fifth of which is sampled, in groups of four with a common first prompt.
"rebuilt": prompts in the prefix-friendly order that keep instructions and task,
300 tokens, and the last three turns; "eights" is the same in groups of eight.
"20m" is one synthetic episode and a model of 20 million parameters, the others
have the micro model. Times are medians of whole updates (credit, critic,
policy); the limit of a ratio is the ratio of the stored tokens, its share what
is reached of it; rows also pay for padding, so that it can exceed 1. The last
line is one JSON object. Compare within one run only.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from steppo_jax import config, evaluate, packing, run_folder, train, types
from steppo_jax import learner as learner_lib
from steppo_jax.models import presets, transformer
from steppo_jax.rollout import loop

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)
LAYOUTS = ("rows", "packed", "tree")
GROUP, TURNS, TURN, SAMPLED, WINDOW, STATIC = 4, 10, 100, 20, 3, 220


def household(run, tasks):
  """Episodes of the warm start, as the first update plays them."""
  run.engine.set_params(run.policy, 0)
  episodes = run.episodes(0)[: tasks * GROUP]
  return loop.run(
    run.engine, evaluate.make_env(run.config.env), episodes, run.prompt,
    run.config.rollout,
  )  # fmt: skip


def synthetic(tasks, vocab, *, rebuilt, group=GROUP, seed=0):
  """Random tokens in the shape of a long conversation."""
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(3, vocab, n).astype(np.int32)
  made = []
  rules = draw(STATIC if rebuilt else 0)
  for number in range(tasks):
    task = np.concatenate([rules, draw(TURN - SAMPLED)])
    for member in range(group):
      uid, turns, steps = f"{number}-{member}", [], []
      for k in range(TURNS):
        history = turns[-WINDOW:] if rebuilt else turns
        seen = draw(TURN - SAMPLED) if k else np.zeros(0, np.int32)
        prompt = np.concatenate([task, *history, seen])
        answer = draw(SAMPLED)
        steps.append(
          types.Step(
            prompt_ids=prompt,
            response_ids=answer,
            response_mask=np.ones(SAMPLED, bool),
            rollout_logprobs=np.full(SAMPLED, -6, np.float32),
            reward=float(rng.normal()),
            trajectory_uid=uid,
            step_index=k,
            group_uid=str(number),
            policy_version=0,
            terminated=k == TURNS - 1,
            truncated=False,
          )
        )
        turns.append(np.concatenate([seen, answer]))
      task_record = types.Task(str(number), "synthetic", "none", {})
      made.append(types.Trajectory(uid, task_record, tuple(steps), None, False))
  return made


def measure(run, model, trajectories, layout, row_length, repeats):
  """Seconds of packing and of an update, and tokens, in one layout."""
  start = time.perf_counter()
  packed = packing.pack(
    trajectories,
    [0] * len(trajectories),
    packing.PackingConfig(layout=layout, row_length=row_length),
    num_parts=1,
    rows_multiple=2,
    pad_id=run.tokenizer.pad_id,
  )
  pack_s = time.perf_counter() - start
  options = dataclasses.replace(
    run.config.learner, num_minibatches=1, critic_warmup=0, microbatch_rows=2
  )
  learner = learner_lib.Learner(
    model, run.config.algorithm.row(), options, run.mesh,
    num_updates=100, seed=0,
  )  # fmt: skip
  state = learner.init(transformer.init(model, jax.random.key(0)))
  batch = learner_lib.put_batch(packed, run.mesh)
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    state, found = learner.update(state, None, batch)
    jax.block_until_ready(found)
    times.append(time.perf_counter() - start)
  return {
    "update_s": statistics.median(times[1:]),
    "pack_s": pack_s,
    "unique_tokens": packed.unique_tokens,
    "slots": int(packed.rows_used.sum()) * row_length,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="smaller batches")
  quick = parser.parse_args().quick
  options = dataclasses.replace(
    config.load(str(EXPERIMENT)), tasks_per_update=16, group_size=GROUP
  )
  run = train.Run(options, pathlib.Path("."))
  vocab, repeats = run.tokenizer.vocab_size, 1 if quick else 3
  tasks, group = (1, 2) if quick else (4, GROUP)
  made = functools.partial(synthetic, tasks, vocab, group=group)
  plain = made(rebuilt=False)
  batches = {
    "household": (household(run, 4 if quick else 16), 256, run.model),
    "synthetic": (plain, 1024, run.model),
    "rebuilt": (made(rebuilt=True), 1024, run.model),
  }
  if not quick:
    eights = synthetic(2, vocab, rebuilt=True, group=8)
    large = presets.get("base_20m", vocab)
    batches["eights"] = (eights, 1024, run.model)
    batches["20m"] = (plain[:1], 1024, large)
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
  }
  print("\n".join(f"{name:10} {value}" for name, value in result.items()))
  print(
    f"\n{'batch':10} {'layout':7} {'update s':>9} {'tokens':>8} {'slots':>8}"
    f" {'faster':>7} {'limit':>7} {'share':>6} {'pack s':>7}"
  )
  for name, (trajectories, row_length, model) in batches.items():
    times = 1 if name == "20m" else repeats
    found = {
      layout: measure(run, model, trajectories, layout, row_length, times)
      for layout in LAYOUTS
    }
    for layout, here in found.items():
      base = found["rows"]
      here["faster"] = base["update_s"] / here["update_s"]
      here["limit"] = base["unique_tokens"] / here["unique_tokens"]
      here["share"] = here["faster"] / here["limit"]
      print(
        f"{name:10} {layout:7} {here['update_s']:9.2f}"
        f" {here['unique_tokens']:8} {here['slots']:8} {here['faster']:7.2f}"
        f" {here['limit']:7.2f} {here['share']:6.2f} {here['pack_s']:7.3f}"
      )
    result[name] = found
    for layout in ("packed", "tree"):
      faster = result.setdefault(f"{layout}_over_rows", {})
      faster[name] = found[layout]["faster"]
  print(json.dumps(result))


if __name__ == "__main__":
  main()
