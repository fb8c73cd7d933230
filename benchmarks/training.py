"""Speed of one update on this machine: rollout, learning, sampling.

  python benchmarks/training.py [--quick]

Plays and learns from household games with the committed warm start, in both
layouts in one run, and prints medians and ratios. The last line is one JSON
object. Machines are shared and noisy: compare within one run only.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax

from steppo_jax.learner import state as learner_state
from steppo_jax.packing import rows as packing
from steppo_jax.storage import events
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config
from steppo_jax.training import run as training_run

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)


def _learn_s(run, trajectories, layout, repeats):
  """Median seconds of one update, and stored tokens, in a layout."""
  options = run.config.learner
  parts = options.num_minibatches
  packed = packing.pack(
    trajectories,
    [i % parts for i in range(len(trajectories))],
    dataclasses.replace(run.config.packing, layout=layout),
    num_parts=parts,
    rows_multiple=options.microbatch_rows,
    pad_id=run.tokenizer.pad_id,
  )
  prompts = run.pack_prompts(packed)
  batch = learner_state.put_batch(packed, run.mesh, prompts=prompts)
  state = run.learner.init(run.policy)
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    state, found = run.learner.update(state, None, batch)
    jax.block_until_ready(found)
    times.append(time.perf_counter() - start)
  rows = int(packed.rows_used.sum()) * run.config.packing.row_length
  return statistics.median(times[1:]), packed.unique_tokens, rows


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="fewer episodes")
  quick = parser.parse_args().quick
  options = config.load(str(EXPERIMENT))
  options = dataclasses.replace(options, tasks_per_update=32 if quick else 128)
  run = training_run.Run(
    options, pathlib.Path("."), events.Log(None), lambda _: None
  )
  engine = run.players.engine
  engine.set_params(run.policy, 0)
  engine.warm_up()
  rollout_s, decoded, steps = [], 0, 0
  for update in range(1 if quick else 3):
    start = time.perf_counter()
    trajectories = run.players.play(run.episodes(update))
    rollout_s.append(time.perf_counter() - start)
    engine.set_params(run.policy, update + 1)
    decoded += sum(len(s.response_ids) for t in trajectories for s in t.steps)
    steps += sum(len(t.steps) for t in trajectories)
  repeats = 1 if quick else 5
  packed_s, unique, packed_slots = _learn_s(
    run, trajectories, "packed", repeats
  )
  rows_s, _, rows_slots = _learn_s(run, trajectories, "rows", repeats)
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "episodes": len(trajectories),
    "rollout_s": statistics.median(rollout_s),
    "steps_per_s": steps / sum(rollout_s),
    "decoded_tokens_per_s": decoded / sum(rollout_s),
    "unique_tokens": unique,
    "prefill_over_prompt_tokens": engine.counters.prefill_tokens
    / engine.counters.prompt_tokens,
    "update_packed_s": packed_s,
    "update_rows_s": rows_s,
    "rows_over_packed": rows_s / packed_s,
    "slots_rows_over_packed": rows_slots / packed_slots,
  }
  for name, value in result.items():
    print(f"{name:28} {value:.4g}" if isinstance(value, float)
          else f"{name:28} {value}")  # fmt: skip
  print(json.dumps(result))


if __name__ == "__main__":
  main()
