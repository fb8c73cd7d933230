"""What a run learns whose rollouts go on meanwhile, by time and by updates.

  python benchmarks/staleness_learning.py [--quick] [--bounds 0 1 2] [--slow]

StepPO on household games (experiments/household_steppo.py), with
`rollout.staleness` of 0 (in turns), 1 and 2. The runs of a seed follow each
other, alone on the machine; `--seeds` (3) and `--updates` (40) say how many.
`--slow` takes the environment of benchmarks/staleness.py whose steps sleep.

Each bound is compared with 0 twice, over the seeds:

  equal_updates  success on the panel of 500 games after the last update;
  equal_time     success of the training episodes whose updates ended in the
                 last quarter of the time that the fastest run of the seed took,
                 counted from the end of the first update, when everything is
                 compiled. These episodes were played by policies up to the
                 bound older.

The learning rate falls by the number of updates, so that a run that is slower
has fallen less at equal time.

Intervals are percentile bootstraps over the seeds, too narrow with three of
them. The last line is one JSON object. `--quick` takes one seed, four small
updates and the bounds 0 and 1: whether it runs, not what comes of it.
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
import staleness

from steppo_jax.envs.household import env as household
from steppo_jax.reports import intervals
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import train

_QUARTER = 0.25


def options(folder, bound, seed, *, updates, slow, quick):
  made = config_lib.load(staleness.EXPERIMENT)
  return dataclasses.replace(
    made,
    seed=seed,
    run_dir=str(folder),
    num_updates=updates,
    tasks_per_update=16 if quick else made.tasks_per_update,
    rollout=dataclasses.replace(
      made.rollout,
      staleness=bound,
      max_steps=4 if quick else made.rollout.max_steps,
      env_threads=made.sampler.num_slots if slow else 0,
    ),
    learner=dataclasses.replace(made.learner, warmup_steps=20),
    evaluation=dataclasses.replace(
      made.evaluation, every=10**6, episodes=8 if quick else 500
    ),
    checkpoint_every=10**6,
  )


def measure(chosen):
  """One run: success on the panel at its ends, and (seconds, success)s."""
  panel, curve, began = [], [], []

  def on_update(done, found):
    del done
    if "rollout/success" in found and not began:
      began.append(time.monotonic())
    elif "rollout/success" in found:
      # The last update's evaluation is no part of training.
      at = time.monotonic() - began[0] - found.get("eval/seconds", 0.0)
      curve.append((at, found["rollout/success"]))
    if "eval/success" in found:
      panel.append(found["eval/success"])

  run = run_folder.open_folder(chosen, "benchmark", "benchmark")
  train.train(chosen, run, on_update=on_update, on_episode=lambda _: None)
  return {"before": panel[0], "after": panel[-1], "curve": curve}


def until(curve, seconds):
  """Mean success of the updates in the last quarter of so many seconds.

  If none ended there, that of the last one before.
  """
  ended = [(at, success) for at, success in curve if at <= seconds] or curve[:1]
  late = [x for at, x in ended if at > (1 - _QUARTER) * seconds]
  return statistics.mean(late or [ended[-1][1]])


def interval(values):
  low, high = intervals.bootstrap_interval(values, 0)
  return {"mean": statistics.mean(values), "low": low, "high": high}


def compare(runs):
  """The numbers by bound; runs: by bound, those of the seeds in their order."""
  rounds = list(zip(*runs.values(), strict=True))
  # Seconds of the fastest run of each seed.
  equal = [min(one["curve"][-1][0] for one in of) for of in rounds]
  table = {}
  for bound, many in runs.items():
    values = {
      "before": [one["before"] for one in many],
      "equal_updates": [one["after"] for one in many],
      "equal_time": [
        until(one["curve"], t) for one, t in zip(many, equal, strict=True)
      ],
      "seconds": [one["curve"][-1][0] for one in many],
    }
    table[bound] = values
  found = {}
  for bound, values in table.items():
    found[bound] = {name: interval(of) for name, of in values.items()}
    if bound and 0 in table:
      found[bound]["minus_turns"] = {
        # The same seed on both sides: its tasks are the same.
        name: interval(
          [a - b for a, b in zip(values[name], table[0][name], strict=True)]
        )
        for name in ("equal_updates", "equal_time")
      }
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="a smoke test")
  parser.add_argument("--slow", action="store_true", help="steps that sleep")
  parser.add_argument("--bounds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--updates", type=int, default=40)
  args = parser.parse_args()
  if args.quick:
    args.bounds, args.seeds, args.updates = [0, 1], 1, 4
  if args.slow:
    household.HouseholdEnv.reset, household.HouseholdEnv.step = (
      staleness.sleeping(staleness.SLEEP_S)
    )
  runs = collections.defaultdict(list)
  for seed in range(args.seeds):
    # Whoever goes first in one seed goes last in another.
    turn = seed % len(args.bounds)
    for bound in args.bounds[turn:] + args.bounds[:turn]:
      with tempfile.TemporaryDirectory() as folder:
        one = measure(
          options(
            pathlib.Path(folder) / "run", bound, seed,
            updates=args.updates, slow=args.slow, quick=args.quick,
          )
        )  # fmt: skip
      print(f"seed={seed} staleness={bound}: {one}", flush=True)
      runs[bound].append(one)
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "quick": args.quick,
    "slow": args.slow,
    "updates": args.updates,
    "seeds": args.seeds,
    "bounds": compare({bound: runs[bound] for bound in args.bounds}),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
