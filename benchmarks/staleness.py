"""What rollouts that go on while the learner works save, in time.

  python benchmarks/staleness.py [--quick] [--bounds 0 1 2 4] [--seeds 3]

StepPO on household games (experiments/household_steppo.py), with
`rollout.staleness` of 0 (rollouts and updates in turns), 1, 2 and 4, one run
after the other and round after round. Two environments:

  fast   the games as they are, tens of microseconds a step;
  slow   each step sleeps 50 ms, those of 5 % of the episodes ten times as long,
         as agents that call tools do; as many threads as slots.

Updates per minute are counted from the end of the first update, when everything
is compiled, to the end of the last; a number is the median over rounds. `gap`
is what the learner's log-probs and the sampler's differ by, which grows with
staleness. `discards` counts episodes that were begun and neither trained on nor
failed. The last line is one JSON object. Compare within one run only.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import statistics
import tempfile
import time

import jax

from steppo_jax.envs.household import env as household
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import train

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)
SLEEP_S, SLOW_SHARE, SLOWER = 0.05, 0.05, 10
_SHOWN = ("rollout/staleness", "rollout/success", "policy/sampler_gap")


def sleeping(sleep_s):
  """The household's step, which takes its time before."""
  step, reset = household.HouseholdEnv.step, household.HouseholdEnv.reset

  def slow_reset(self, task, seed):
    # One episode in twenty, the same ones in every run.
    slow = random.Random(f"{task.uid} {seed}").random() < SLOW_SHARE
    self.sleep_s = sleep_s * (SLOWER if slow else 1)
    return reset(self, task, seed)

  def slow_step(self, text):
    time.sleep(self.sleep_s)
    return step(self, text)

  return slow_reset, slow_step


def options(folder, bound, seed, *, slow, quick):
  made = config_lib.load(EXPERIMENT)
  slots = made.sampler.num_slots
  updates = (3 if slow else 4) if quick else (6 if slow else 12)
  rollout = dataclasses.replace(
    made.rollout, staleness=bound, env_threads=slots if slow else 0
  )
  if quick:
    rollout = dataclasses.replace(rollout, max_steps=6)
  return dataclasses.replace(
    made,
    seed=seed,
    run_dir=str(folder),
    num_updates=updates,
    tasks_per_update=32 if quick else made.tasks_per_update,
    rollout=rollout,
    # The panel is no part of it.
    evaluation=dataclasses.replace(made.evaluation, every=10**6, episodes=1),
    checkpoint_every=10**6,
  )


def measure(folder, bound, seed, *, slow, quick):
  """One run: updates per minute, episodes lost, and the last metrics."""
  chosen = options(folder, bound, seed, slow=slow, quick=quick)
  ends, ended, last = [], collections.Counter(), {}

  def on_update(done, found):
    ends.append(time.monotonic())
    last.update(found)

  def on_episode(trajectory):
    ended["failed" if trajectory.error else "whole"] += 1

  run = run_folder.open_folder(chosen, "benchmark", "benchmark")
  train.train(chosen, run, on_update=on_update, on_episode=on_episode)
  begun = chosen.num_updates * chosen.tasks_per_update * chosen.group_size
  # ends[0] is the evaluation before the first update.
  minutes = (ends[-1] - ends[1]) / 60
  return {
    "updates_per_minute": (chosen.num_updates - 1) / minutes,
    "discards": begun - ended["whole"] - ended["failed"],
    **{name: last[name] for name in _SHOWN if name in last},
  }


def table(kind, bounds, rounds, quick):
  """Medians by bound, the runs of a round side by side."""
  plain = household.HouseholdEnv.reset, household.HouseholdEnv.step
  changed = sleeping(SLEEP_S) if kind == "slow" else plain
  found = collections.defaultdict(list)
  household.HouseholdEnv.reset, household.HouseholdEnv.step = changed
  try:
    for seed in range(rounds):
      for bound in bounds:
        with tempfile.TemporaryDirectory() as folder:
          one = measure(
            pathlib.Path(folder) / "run", bound, seed,
            slow=kind == "slow", quick=quick,
          )  # fmt: skip
        print(f"{kind} staleness={bound} seed={seed}: {one}", flush=True)
        found[bound].append(one)
  finally:
    household.HouseholdEnv.reset, household.HouseholdEnv.step = plain
  return {
    bound: {
      name: (sum if name == "discards" else statistics.median)(
        one[name] for one in many
      )
      for name in many[0]
    }
    for bound, many in found.items()
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small batches")
  parser.add_argument("--bounds", type=int, nargs="+", default=[0, 1, 2, 4])
  parser.add_argument("--seeds", type=int, default=3, help="rounds")
  args = parser.parse_args()
  bounds = [0, 1, 2] if args.quick else args.bounds
  rounds = 1 if args.quick else args.seeds
  tables = {
    kind: table(kind, bounds, rounds, args.quick) for kind in ("fast", "slow")
  }
  rate = lambda kind, bound: tables[kind][bound]["updates_per_minute"]
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "quick": args.quick,
    "discards": sum(
      one["discards"] for of in tables.values() for one in of.values()
    ),
    "tables": tables,
  }
  if {0, 1} <= set(bounds):
    result["fast_env_k1"] = rate("fast", 1) / rate("fast", 0)
  if {0, 2} <= set(bounds):
    result["slow_env_k2"] = rate("slow", 2) / rate("slow", 0)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
