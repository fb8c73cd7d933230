"""What recording the credit of every update costs, in time and in bytes.

  python benchmarks/credit.py [--quick] [--rounds 3]

StepPO on household games (experiments/household_steppo.py), with
`record_credit` of None and of 1, one run after the other and round after round,
every other round in the other order. An update's time is that of packing and
learning (`time/learn_s`), in which the credit is computed and written; the
median is over all updates but the first, which compiles. The last line is one
JSON object, whose `update_cost` and `run_cost` are shares of the time without.
`cpu_cost` is the same of the processor's time for the run, rollouts included:
it is what to read on a machine that others use. Compare within one run only.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import jax

from steppo_jax.storage import credit
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import train

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)


def options(folder, record, *, quick):
  made = config_lib.load(EXPERIMENT)
  rollout = made.rollout
  if quick:
    rollout = dataclasses.replace(rollout, max_steps=6)
  return dataclasses.replace(
    made,
    run_dir=str(folder),
    num_updates=4 if quick else 8,
    tasks_per_update=16 if quick else made.tasks_per_update,
    rollout=rollout,
    record_credit=record,
    # The panel is no part of it.
    evaluation=dataclasses.replace(made.evaluation, every=10**6, episodes=1),
    checkpoint_every=10**6,
  )


def measure(folder, record, *, quick):
  """One run: seconds of each update, of all, of the CPU, and sizes of files."""
  chosen = options(folder, record, quick=quick)
  ends, cpu, seconds = [], [], []

  def on_update(done, found):
    ends.append(time.monotonic())
    cpu.append(time.process_time())
    if done > 1:
      seconds.append(found["time/learn_s"])

  run = run_folder.open_folder(chosen, "benchmark", "benchmark")
  train.train(chosen, run, on_update=on_update, on_episode=lambda _: None)
  sizes = [
    credit.path_of(run, update).stat().st_size
    for update in credit.updates_of(run)
  ]
  # ends[0] is the evaluation before the first update.
  return seconds, (ends[-1] - ends[1], cpu[-1] - cpu[1]), sizes


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small batches")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  update, whole, sizes = collections.defaultdict(list), {}, []
  for round_ in range(1 if args.quick else args.rounds):
    for record in (None, 1) if round_ % 2 == 0 else (1, None):
      with tempfile.TemporaryDirectory() as folder:
        seconds, total, found = measure(
          pathlib.Path(folder) / "run", record, quick=args.quick
        )
      print(
        f"record_credit={record}: {total[0]:.1f} s, {total[1]:.1f} of CPU",
        flush=True,
      )
      update[record] += seconds
      whole.setdefault(record, []).append(total)
      sizes += found
  median = {record: statistics.median(all_) for record, all_ in update.items()}
  runs, cpu = (
    {record: statistics.median(one[i] for one in all_)
     for record, all_ in whole.items()}
    for i in range(2)
  )  # fmt: skip
  print(
    json.dumps(
      {
        "hardware": run_folder.hardware(),
        "commit": run_folder.commit(),
        "jax": jax.__version__,
        "quick": args.quick,
        "update_seconds": {str(k): round(v, 4) for k, v in median.items()},
        "update_cost": round(median[1] / median[None] - 1, 4),
        "run_cost": round(runs[1] / runs[None] - 1, 4),
        "cpu_seconds": {str(k): round(v, 2) for k, v in cpu.items()},
        "cpu_cost": round(cpu[1] / cpu[None] - 1, 4),
        "bytes": round(statistics.mean(sizes)),
      }
    )
  )


if __name__ == "__main__":
  main()
