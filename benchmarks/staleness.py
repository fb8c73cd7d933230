"""What rollouts that go on while the learner works save, in time.

  python benchmarks/staleness.py [--quick] [--bounds 0 1 2 4] [--seeds 3]

StepPO on household games (experiments/household_steppo.py), with
`rollout.staleness` of 0 (rollouts and updates in turns), 1, 2 and 4, one run
after the other and round after round. Two environments:

  fast   the games as they are, tens of microseconds a step;
  slow   each step sleeps 50 ms, those of 5 % of the episodes ten times as long,
         as agents that call tools do; as many threads as slots.

Updates per minute are counted in the middle of a run: with K the largest bound
the first K + 1 updates are left out, whose episodes are played while the
learner is compiled, and the last K, beside which none are played. A number is
the median over rounds. `gap` is what the learner's log-probs and the sampler's
differ by, which grows with staleness. `discards` counts episodes that were
begun and not given to the learner (`rollout/discarded`). The last line is one
JSON object. Compare within one run only.

  python benchmarks/staleness.py --cache [--seeds 3]

measures what `sampler.keep_cache_across_versions` does instead: K = 2 in the
slow environment, with the cache read anew and kept. Every token's log-prob is
compared with that of the very policy that its step names, in steps before and
after the first change of weights within their episode.
"""

import argparse
import collections
import dataclasses
import functools
import json
import pathlib
import random
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax.envs.household import env as household
from steppo_jax.models import transformer
from steppo_jax.ops import attention, logprobs
from steppo_jax.pretrained import policy as pretrained_policy
from steppo_jax.rollout import journal
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import ahead, players, train
from steppo_jax.training import config as config_lib

# Updates that are counted, by environment; with `--quick`.
COUNTED = {"fast": 6, "slow": 5}
QUICK = 3
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


def options(folder, bound, seed, *, updates, slow, quick):
  made = config_lib.load(EXPERIMENT)
  slots = made.sampler.num_slots
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


def measure(folder, bound, seed, *, most, slow, quick):
  """One run: updates per minute, episodes lost, and the last metrics."""
  counted = QUICK if quick else COUNTED["slow" if slow else "fast"]
  # The same ones whatever the bound; `most` is the largest.
  first, last = most + 1, most + 1 + counted
  chosen = options(
    folder, bound, seed, updates=last + most, slow=slow, quick=quick
  )
  ends, lines = [], []

  def on_update(done, found):
    # The first is the evaluation before the first update.
    ends.append(time.monotonic())
    lines.append(dict(found))

  run = run_folder.open_folder(chosen, "benchmark", "benchmark")
  train.train(chosen, run, on_update=on_update, on_episode=lambda _: None)
  return {
    "updates_per_minute": counted / ((ends[last] - ends[first]) / 60),
    "discards": sum(line.get("rollout/discarded", 0) for line in lines),
    **{name: lines[last][name] for name in _SHOWN if name in lines[last]},
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
            most=max(bounds), slow=kind == "slow", quick=quick,
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


@functools.partial(jax.jit, static_argnames="model")
def log_probs(model, policy, ids):
  """log p of each token of [B, T] sequences, by the learner's forward."""
  b, t = ids.shape
  end = jnp.full((b, t), t)
  attend = lambda q, k, v: attention.interval_attention(q, k, v, end, block=16)
  positions = jnp.broadcast_to(jnp.arange(t), (b, t))
  hidden = transformer.apply(model, policy, ids, positions, attend)
  found, _ = logprobs.next_token_logprobs(
    hidden, policy["embed"]["embedding"], ids, jnp.maximum(positions - 1, 0),
    positions > 0, chunk=16, temperature=1.0, softcap=None,
  )  # fmt: skip
  return found


def gaps(model, policies, trajectories, length):
  """Distances of tokens to the policy of their step, before and after changes.

  Returns:
    [n] arrays: of steps whose episode had one policy so far, and of others.
  """
  steps = collections.defaultdict(list)
  for one in trajectories:
    for step in one.steps:
      after = step.policy_version > one.steps[0].policy_version
      steps[step.policy_version].append((step, after))
  found = {False: [], True: []}
  for version, many in steps.items():
    for start in range(0, len(many), 16):
      part = many[start : start + 16]
      ids = np.zeros((16, length), np.int32)
      for row, (step, _) in enumerate(part):
        whole = np.concatenate([step.prompt_ids, step.response_ids])
        ids[row, : len(whole)] = whole
      ours = np.asarray(log_probs(model, policies[version], ids))
      for row, (step, after) in enumerate(part):
        first = len(step.prompt_ids)
        want = ours[row, first : first + len(step.response_ids)]
        found[after].append(np.abs(step.behaviour_logp - want))
  return [np.concatenate(found[k] or [np.zeros(0)]) for k in (False, True)]


def measure_cache(folder, keep, seed):
  """One run of K = 2: gaps, and the share of prompt tokens that was read."""
  chosen = options(folder, 2, seed, updates=3, slow=True, quick=True)
  chosen = dataclasses.replace(
    chosen,
    keep_journals=chosen.num_updates,
    # Few slots: episodes of one update run across the end of another.
    sampler=dataclasses.replace(
      chosen.sampler, num_slots=16, keep_cache_across_versions=keep
    ),
  )
  policies, lines, taken = {}, [], ahead.Ahead.set_policy

  def noted(self, policy, version):
    policies[version] = jax.device_get(policy)
    taken(self, policy, version)

  ahead.Ahead.set_policy = noted
  try:
    run = run_folder.open_folder(chosen, "benchmark", "benchmark")
    train.train(
      chosen, run, on_update=lambda done, found: lines.append(dict(found)),
      on_episode=lambda _: None,
    )  # fmt: skip
  finally:
    ahead.Ahead.set_policy = taken
  held = [
    one
    for path in sorted((run / run_folder.JOURNALS_NAME).iterdir())
    for one in journal.read(path).trajectories.values()
  ]
  tokenizer = pretrained_policy.load_tokenizer(
    chosen.tokenizer, chosen.weights, chosen.base
  )
  model, _ = players.load_model(chosen, tokenizer)
  of = lambda name: sum(line.get(f"sampler/{name}", 0) for line in lines)
  before, after = gaps(model, policies, held, chosen.rollout.max_tokens)
  return {
    "gap_one_policy": float(before.mean()),
    "gap_after_change": float(after.mean()) if after.size else None,
    "largest_after_change": float(after.max()) if after.size else None,
    "tokens_after_change": int(after.size),
    "sampler_gap": lines[-1]["policy/sampler_gap"],
    "read_share": of("prefill_tokens") / of("prompt_tokens"),
  }


def cache_table(rounds):
  """The runs of a round side by side, by whether the cache is kept."""
  plain = household.HouseholdEnv.reset, household.HouseholdEnv.step
  changed = sleeping(SLEEP_S)
  household.HouseholdEnv.reset, household.HouseholdEnv.step = changed
  found = {"read_anew": [], "kept": []}
  try:
    for seed in range(rounds):
      for name, many in found.items():
        with tempfile.TemporaryDirectory() as folder:
          one = measure_cache(
            pathlib.Path(folder) / "run", name == "kept", seed
          )
        print(f"{name} seed={seed}: {one}", flush=True)
        many.append(one)
  finally:
    household.HouseholdEnv.reset, household.HouseholdEnv.step = plain
  return found


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="small batches")
  parser.add_argument("--bounds", type=int, nargs="+", default=[0, 1, 2, 4])
  parser.add_argument("--seeds", type=int, default=3, help="rounds")
  parser.add_argument("--cache", action="store_true", help="see above")
  args = parser.parse_args()
  if args.cache:
    result = {
      "hardware": run_folder.hardware(),
      "commit": run_folder.commit(),
      "jax": jax.__version__,
      "cache": cache_table(1 if args.quick else args.seeds),
    }
    print(json.dumps(result))
    return
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
