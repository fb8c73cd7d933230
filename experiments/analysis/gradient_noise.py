"""How much of a policy gradient is signal? Cosines between batches.

    python experiments/analysis/gradient_noise.py \\
      experiments/household_steppo.py num_updates=16 tasks_per_update=64

From the weights that a run starts with: `--warmup` updates of the critic alone,
then `num_updates` batches, and for every credit of the table the gradient of
its loss on each of them, before any step of the policy and without a bonus of
entropy. Printed are the mean cosine between two batches, which is the share of
the gradient's power that is signal, with a 95 % interval over batches (a
jackknife), and the size of a batch in which that share would be half.
`group_size=8` adds the credits of groups. One JSON object is the last line. 16
batches of 128: 8 minutes on one core.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import jax.flatten_util
import numpy as np
import optax

from steppo_jax.algorithms import options as algorithm_options
from steppo_jax.learner import learner
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.storage import events
from steppo_jax.training import config
from steppo_jax.training import run as training_run

_GROUPED = ("grpo", "gigpo", "gagpo")
# A step that takes the gradient itself from the parameters.
_TAKEN = optax.scale(-1.0)


def credits(own: algorithm_options.AlgorithmConfig, tokens: float, groups):
  """Credits by name: horizons per token are the run's per step, stretched."""
  # A bonus of entropy has one gradient in all batches, which is no credit.
  row = functools.partial(
    dataclasses.replace, own, entropy_coef=0.0, kl_coef=0.0
  )
  step = row(name="steppo").row()
  per_token = {
    name: getattr(step, name) ** (1 / tokens)
    for name in ("discount", "lambda_")
  }
  found = {
    "step GAE": row(name="steppo"),
    "step GAE, λ 0": row(name="steppo", lambda_=0.0),
    "step GAE, γ = λ = 1": row(name="steppo", discount=1.0, lambda_=1.0),
    "token GAE": row(name="ppo", **per_token),
    "token GAE, γ = λ = 1": row(name="ppo", discount=1.0, lambda_=1.0),
  }
  if groups:
    table = dict.fromkeys(("discount", "lambda_", "clip_low", "clip_high"))
    found |= {name: row(name=name, **table) for name in _GROUPED}
  return found


def gradient(spec, state, batch) -> np.ndarray:
  """The policy's gradient as one vector: what a step of rate 1 takes away."""
  after, _ = update_lib.update(spec, state, None, batch)
  taken = jax.tree.map(lambda a, b: a - b, state.policy, after.policy)
  return jax.flatten_util.ravel_pytree(taken)[0]


def cosines(gradients: np.ndarray) -> tuple[float, float]:
  """Mean cosine of all pairs of rows [N, P], and its jackknife deviation.

  A batch without a gradient has cosine 0 with all others.
  """
  size = np.linalg.norm(gradients, axis=1, keepdims=True)
  unit = gradients / np.maximum(size, np.finfo(np.float32).tiny)
  pairs = unit @ unit.T
  n = len(pairs)
  mean = lambda p: (p.sum() - np.trace(p)) / (len(p) * (len(p) - 1))
  left = [mean(np.delete(np.delete(pairs, i, 0), i, 1)) for i in range(n)]
  spread = np.sqrt((n - 1) / n * np.sum((left - np.mean(left)) ** 2))
  return float(mean(pairs)), float(spread)


def _spec(run, row):
  """An update that takes one step of rate 1 with the credit of a row."""
  options = dataclasses.replace(
    run.config.learner, actor_epochs=1, critic_warmup=0, critic_epochs=0
  )
  spec = learner.make_spec(
    run.model, row, options, run.mesh, num_updates=1, seed=0,
    temperature=run.config.rollout.temperature,
  )  # fmt: skip
  return spec._replace(policy_optimizer=_TAKEN)


def study(run: training_run.Run, warmup: int) -> dict:
  """Gradients of every credit on the batches of a run."""
  state = run.start()
  run.hand_over(state.policy, 0)
  found: dict[str, list] = {}
  programs = {}
  for update in range(warmup + run.config.num_updates):
    episodes, _ = run.rollouts.play(update, run.episodes(update))
    packed = run.pack(episodes, update)
    batch = learner_state.put_batch(packed, run.mesh)
    if update < warmup:
      # `critic_warmup` of the run keeps the policy as it is.
      state, _ = run.learner.update(state, None, batch)
      continue
    if not programs:
      steps = [s for t in episodes for s in t.steps]
      tokens = np.mean([len(s.response_ids) for s in steps])
      programs = _programs(run, tokens)
      print(f"{tokens:.1f} tokens an action, {len(steps)} actions a batch")
    for name, (needs_critic, program) in programs.items():
      given = state.replace(policy_optimizer=_TAKEN.init(state.policy))
      if not needs_critic:
        given = given.replace(critic=None, critic_optimizer=None)
      found.setdefault(name, []).append(np.asarray(program(given, batch)))
    done = update - warmup + 1
    print(f"batch {done} of {run.config.num_updates}", flush=True)
  return {
    "tokens": float(tokens),
    "cosines": {name: cosines(np.stack(g)) for name, g in found.items()},
  }


def _programs(run, tokens):
  groups = run.config.group_size > 1
  programs = {}
  for name, options in credits(run.config.algorithm, tokens, groups).items():
    row = options.row()
    program = jax.jit(functools.partial(gradient, _spec(run, row)))
    programs[name] = (row.critic is not None, program)
  return programs


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("experiment", help="file that defines CONFIG")
  parser.add_argument("assignments", nargs="*", help="key=value options")
  parser.add_argument("--warmup", type=int, default=5, help="critic's updates")
  args = parser.parse_intermixed_args(argv)
  options = config.override(
    config.load(args.experiment),
    [
      *args.assignments,
      "learner.num_minibatches=1",
      f"learner.critic_warmup={args.warmup}",
      "num_devices=1",
      "evaluation.episodes=1",
    ],
    "gradient_noise.py",
  )
  if options.num_updates < 3:
    parser.error(f"num_updates={options.num_updates}: an interval needs 3")
  with tempfile.TemporaryDirectory() as folder, events.Log(None) as log:
    run = training_run.Run(options, pathlib.Path(folder), log, lambda _: None)
    with run.players:
      found = study(run, args.warmup)
  episodes = options.tasks_per_update * options.group_size
  print(f"| credit | cosine of two batches of {episodes} | episodes for half |")
  print("|---|---|---|")
  for name, (cosine, spread) in found["cosines"].items():
    half = episodes * (1 - cosine) / cosine if cosine > 0 else math.inf
    print(f"| {name} | {cosine:.3f} ± {1.96 * spread:.3f} | {half:,.0f} |")
  print(json.dumps({"episodes": episodes, **found}))


if __name__ == "__main__":
  main()
