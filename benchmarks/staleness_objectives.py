"""Which objectives hold where the weights that sampled are old.

  python benchmarks/staleness_objectives.py [--quick] [--staleness 8]

StepPO on household games (experiments/household_steppo.py), trained on episodes
that were sampled K = 8 updates ago, by objectives that differ in what they make
of the distance between the policy that sampled and the one that learns:

  plain_token  the importance ratio of each token to the sampler, not clipped
  plain        that of each step, not clipped
  clipped      the row as it is: the ratio of a step, clipped
  decoupled    ratio and clip around the policy before the update, tokens
               weighed by how likely that one finds them
               (rollout_correction=tis_token)
  tis_step     the same with one weight a step
  icepop       the same, and no weight outside of a band
  geometric    whole steps in or out by their mean distance
  fresh        clipped, in turns (staleness 0): the distance to it is what
               staleness costs

All have the same seeds (`--seeds`, 3), tasks and numbers of updates, and the
runs of a seed follow each other. The learner waits before each update until the
rollouts are as far ahead as the bound lets them, so that the age of the weights
is K whatever the speed of the machine. Success and reward are those of the last
quarter of the training episodes, and of the panel at the end; intervals are
percentile bootstraps over the seeds, too narrow with three of them. A run that
ends because something is not finite counts as broken. The last line is one JSON
object. `--quick` takes one seed, two updates, K = 1 and three objectives:
whether it runs, not what comes of it.
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

import steppo_jax
from steppo_jax.ops import losses
from steppo_jax.reports import intervals
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import ahead, train
from steppo_jax.training import config as config_lib

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)
# Options of the algorithm by objective.
OBJECTIVES = {
  "plain_token": {"surrogate": "importance", "ratio": "token"},
  "plain": {"surrogate": "importance"},
  "clipped": {},
  "decoupled": {"rollout_correction": "tis_token"},
  "tis_step": {"rollout_correction": "tis_step"},
  "icepop": {"rollout_correction": "icepop"},
  "geometric": {"rollout_correction": "geometric"},
  "fresh": {},
}
QUICK = ("plain_token", "decoupled", "fresh")
# Of the last quarter of the updates, and of the last evaluation.
TRAINED = ("rollout/success", "rollout/reward", "rollout/staleness",
           "policy/effective_sample_size", "policy/grad_norm",
           "policy/entropy")  # fmt: skip
JUDGED = ("eval/success",)
_PATIENCE_S = 600.0


def importance(row, z, advantage, logp_t, batch):
  """Importance sampling without a clip: -w A."""
  del row, logp_t, batch
  return -losses.bounded_exp(z) * advantage, z != z, z


steppo_jax.register("surrogate", "importance", importance)


class Oldest(ahead.Ahead):
  """Lets the learner go on when the rollouts are as far ahead as they may."""

  def play(self, update, episodes):
    found = super().play(update, episodes)
    left = self._config.num_updates - 1 - update
    until = time.monotonic() + _PATIENCE_S
    while self.finished_updates() < min(self._bound, left):
      if time.monotonic() > until:
        raise RuntimeError(f"no episodes within {_PATIENCE_S:g} s")
      time.sleep(0.005)
    return found


def options(folder, objective, seed, *, staleness, updates, quick):
  made = config_lib.load(EXPERIMENT)
  fresh = objective == "fresh"
  return dataclasses.replace(
    made,
    seed=seed,
    run_dir=str(folder),
    num_updates=updates,
    tasks_per_update=16 if quick else 32,
    algorithm=dataclasses.replace(made.algorithm, **OBJECTIVES[objective]),
    rollout=dataclasses.replace(
      made.rollout, max_steps=4 if quick else 8,
      staleness=0 if fresh else staleness,
    ),
    # As many optimizer steps as there are, at the full rate.
    learner=dataclasses.replace(made.learner, warmup_steps=4),
    evaluation=dataclasses.replace(
      made.evaluation, every=10**6, episodes=1 if quick else 200
    ),
    checkpoint_every=10**6,
  )  # fmt: skip


def measure(chosen):
  """One run: its numbers, and "broken" 1 where it could not go on."""
  lines = []
  run = run_folder.open_folder(chosen, "benchmark", "benchmark")
  try:
    train.train(
      chosen, run, on_update=lambda done, found: lines.append(dict(found)),
      on_episode=lambda _: None,
    )  # fmt: skip
  except RuntimeError as error:
    if "not finite" not in str(error):
      raise
    print(f"  broken: {error}", flush=True)
    return {"broken": 1.0}
  last = lines[1:][-max(1, chosen.num_updates // 4) :]
  of = lambda name, from_: [line[name] for line in from_ if name in line]
  return (
    {"broken": 0.0}
    | {n: statistics.mean(of(n, last)) for n in TRAINED if of(n, last)}
    | {n: of(n, lines)[-1] for n in JUDGED if of(n, lines)}
  )


def summary(runs):
  """Means with intervals over the runs of an objective, by name."""
  names = dict.fromkeys(name for one in runs for name in one)
  found = {}
  for name in names:
    values = [one[name] for one in runs if name in one]
    low, high = intervals.bootstrap_interval(values, 0)
    found[name] = {
      "mean": statistics.mean(values), "low": low, "high": high,
      "runs": len(values),
    }  # fmt: skip
  return found


def show(tables):
  """The table for whoever looks on."""
  names = ("broken", *JUDGED, *TRAINED)
  print(f"{'':12s}" + "".join(f"{n.split('/')[-1][:21]:>25s}" for n in names))
  for objective, of in tables.items():
    cells = [
      f"{of[n]['mean']:.3f} [{of[n]['low']:.3f}, {of[n]['high']:.3f}]"
      if n in of
      else "-"
      for n in names
    ]
    print(f"{objective:12s}" + "".join(f"{cell:>25s}" for cell in cells))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="a smoke test")
  parser.add_argument("--staleness", type=int, default=8)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--updates", type=int, default=32)
  parser.add_argument(
    "--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES)
  )
  args = parser.parse_args()
  if args.quick:
    args.staleness, args.seeds, args.updates = 1, 1, 2
    args.objectives = QUICK
  # Whoever makes a run's rollouts takes this one.
  ahead.Ahead = Oldest
  runs = collections.defaultdict(list)
  for seed in range(args.seeds):
    for objective in args.objectives:
      with tempfile.TemporaryDirectory() as folder:
        one = measure(
          options(
            pathlib.Path(folder) / "run", objective, seed,
            staleness=args.staleness, updates=args.updates, quick=args.quick,
          )
        )  # fmt: skip
      print(f"seed={seed} {objective}: {one}", flush=True)
      runs[objective].append(one)
  tables = {objective: summary(many) for objective, many in runs.items()}
  show(tables)
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "quick": args.quick,
    "staleness": args.staleness,
    "updates": args.updates,
    "seeds": args.seeds,
    "objectives": tables,
  }
  if "fresh" in runs:
    # What staleness takes from the success of training episodes.
    success = lambda name: [
      one["rollout/success"] for one in runs[name] if not one["broken"]
    ]
    for name in [name for name in runs if name != "fresh"]:
      if success(name) and success("fresh"):
        result.setdefault("minus_fresh", {})[name] = intervals.difference(
          success(name), success("fresh"), 0
        )
  print(json.dumps(result))


if __name__ == "__main__":
  main()
