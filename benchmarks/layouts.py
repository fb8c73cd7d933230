"""What sharing prefixes saves: one batch in three layouts, one update of each.

  python benchmarks/layouts.py [--quick]

Three batches, in one run. "household": real episodes of the committed warm
start in groups of four. "synthetic": episodes of 10 turns of 100 tokens, one
fifth of which is sampled, in groups of four with a common first prompt.
"rebuilt": the same with the task and the last three turns only as prompt, the
static part first. Times are medians of whole updates (credit, critic, policy)
with the micro model; the limit of a ratio is the ratio of the stored tokens.
The last line is one JSON object. Compare within one run only.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from steppo_jax import config, evaluate, packing, run_folder, train, types
from steppo_jax import learner as learner_lib
from steppo_jax.rollout import loop

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)
LAYOUTS = ("rows", "packed", "tree")
GROUP, TURNS, TURN, SAMPLED, WINDOW = 4, 10, 100, 20, 3


def household(run, tasks):
  """Episodes of the warm start, as the first update plays them."""
  run.engine.set_params(run.policy, 0)
  run.engine.warm_up()
  episodes = run.episodes(0)[: tasks * GROUP]
  return loop.run(
    run.engine, evaluate.make_env(run.config.env), episodes, run.prompt,
    run.config.rollout,
  )  # fmt: skip


def synthetic(tasks, vocab, *, rebuilt, seed=0):
  """Random tokens in the shape of a long conversation."""
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(3, vocab, n).astype(np.int32)
  made = []
  for group in range(tasks):
    task = draw(TURN - SAMPLED)
    for member in range(GROUP):
      uid, turns, steps = f"{group}-{member}", [], []
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
            group_uid=str(group),
            policy_version=0,
            terminated=k == TURNS - 1,
            truncated=False,
          )
        )
        turns.append(np.concatenate([seen, answer]))
      task_record = types.Task(str(group), "synthetic", "none", {})
      made.append(types.Trajectory(uid, task_record, tuple(steps), None, False))
  return made


def measure(run, trajectories, layout, row_length, repeats):
  """Seconds of packing and of an update, and tokens, in one layout."""
  start = time.perf_counter()
  packed = packing.pack(
    trajectories,
    [0] * len(trajectories),
    packing.PackingConfig(layout=layout, row_length=row_length),
    num_parts=1,
    rows_multiple=run.config.learner.microbatch_rows,
    pad_id=run.tokenizer.pad_id,
  )
  pack_s = time.perf_counter() - start
  options = dataclasses.replace(
    run.config.learner, num_minibatches=1, critic_warmup=0
  )
  learner = learner_lib.Learner(
    run.model, run.config.algorithm.row(), options, run.mesh,
    num_updates=100, seed=0,
  )  # fmt: skip
  state = learner.init(run.policy)
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
  tasks = 2 if quick else 8
  batches = {
    "household": (household(run, 4 if quick else 16), 256),
    "synthetic": (synthetic(tasks, vocab, rebuilt=False), 1024),
    "rebuilt": (synthetic(tasks, vocab, rebuilt=True), 1024),
  }
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
  for name, (trajectories, row_length) in batches.items():
    found = {
      layout: measure(run, trajectories, layout, row_length, repeats)
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
    result.setdefault("packed_over_rows", {})[name] = found["packed"]["faster"]
  print(json.dumps(result))


if __name__ == "__main__":
  main()
