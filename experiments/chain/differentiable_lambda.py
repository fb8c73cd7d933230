"""Tune λ by the gradient of what an update achieves, through the update.

    python experiments/chain/differentiable_lambda.py [--output docs/lambda.png]

A policy on a small chain is updated once from 8 sampled episodes: step GAE with
a critic that is wrong by a fixed error, whitening, and four gradient steps on
the clipped surrogate, all by the library's public functions. The value of the
updated policy is exact (dynamic programming), so `jax.grad` gives its slope in
λ through the whole update. Adam follows the slope, averaged over 64 batches a
step, from three starts with three seeds; a sweep over λ on other batches says
where the best one is. Once without a clip, where the slope is that of the
sweep, and once with a clip of 0.2: which steps are clipped changes with λ in
jumps that no derivative sees, and λ ends a little beside the best one.
Half a minute on one core.
"""

import argparse
import functools
import math

import chain as chain_lib
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import figure

import steppo_jax

CHAIN = chain_lib.Chain()
EPISODES, LIMIT = 8, 16
EPOCHS, RATE = 4, 4.0
CLIPS = {"no clip": math.inf, "clip 0.2": 0.2}
ERROR = 3.0  # deviation of the critic's error, in units of value
STARTS = (0.1, 0.5, 0.98)


def critic():
  """[n] exact values of the uniform policy plus a fixed error."""
  exact = chain_lib.solve(CHAIN, jnp.full((CHAIN.size, 2), 0.5))
  return exact + ERROR * jax.random.normal(jax.random.key(7), (CHAIN.size,))


def update(logits, lambda_, steps, value, clip):
  """Logits [n, 2] after one update from some steps."""
  ids = jnp.where(steps.live, jnp.arange(steps.live.size), 0)[None, :]
  advantage_k, _ = steppo_jax.step_gae(
    steps.reward,
    jnp.where(steps.live, value[steps.state], 0.0),
    steps.last,
    jnp.where(steps.truncated, value[steps.after], 0.0),
    discount=CHAIN.discount,
    lambda_=lambda_,
  )
  advantage_k = steppo_jax.whiten(advantage_k, steps.live)
  logp = lambda x: jax.nn.log_softmax(x)[steps.state, steps.action][None, :]
  behaviour_t = logp(logits)

  def loss(x):
    z_t = steppo_jax.log_ratio(logp(x), behaviour_t, ids > 0)
    z_k = steppo_jax.pooled_log_ratio(
      z_t, ids, num_steps=steps.live.size, power=1.0, center=False
    )
    loss_k, _ = steppo_jax.clipped_surrogate(
      jnp.exp(z_k), advantage_k, clip_low=clip, clip_high=clip, dual_clip=None
    )
    total, weight = steppo_jax.step_mean_loss(
      steppo_jax.to_tokens(loss_k, ids), ids, num_steps=steps.live.size
    )
    return total / weight

  for _ in range(EPOCHS):
    logits = logits - RATE * jax.grad(loss)(logits)
  return logits


def achieved(lambda_, key, clip):
  """Mean over states of the exact value after an update with this λ."""
  logits = jnp.zeros((CHAIN.size, 2))
  steps = chain_lib.sample(
    CHAIN, jax.nn.softmax(logits), key, episodes=EPISODES, limit=LIMIT
  )
  logits = update(logits, lambda_, steps, critic(), clip)
  return chain_lib.solve(CHAIN, jax.nn.softmax(logits)).mean()


def mean_achieved(lambda_, keys, clip):
  """The same, averaged over batches."""
  one = lambda key: achieved(lambda_, key, clip)
  return jax.vmap(one)(keys).mean()


@functools.partial(jax.jit, static_argnames=("num_steps", "batches"))
def tune(start, key, clip, *, num_steps, batches):
  """λ before each of `num_steps` steps of Adam on its logit, and at the end."""
  optimizer = optax.adam(0.1)
  slope = jax.grad(
    lambda x, keys: -mean_achieved(jax.nn.sigmoid(x), keys, clip)
  )

  def body(carry, key):
    x, state = carry
    gradient = slope(x, jax.random.split(key, batches))
    change, state = optimizer.update(gradient, state)
    return (optax.apply_updates(x, change), state), jax.nn.sigmoid(x)

  x = jnp.log(start) - jnp.log1p(-start)
  (x, _), path = jax.lax.scan(
    body, (x, optimizer.init(x)), jax.random.split(key, num_steps)
  )
  return jnp.append(path, jax.nn.sigmoid(x))


@functools.partial(jax.jit, static_argnames="batches")
def sweep(grid, key, clip, *, batches):
  """Achieved value [λ, batches] on the same batches for every λ."""
  keys = jax.random.split(key, batches)
  one = lambda lambda_: jax.vmap(lambda key: achieved(lambda_, key, clip))(keys)
  return jax.lax.map(one, grid)


def run(clip, *, seeds, starts, num_steps, batches, grid, sweep_batches):
  """Paths of λ [starts, num_steps + 1] and the sweep [λ, sweep_batches]."""
  size = {"num_steps": num_steps, "batches": batches}
  paths = [
    tune(jnp.float32(start), jax.random.key(seed), clip, **size)
    for seed, start in zip(seeds, starts, strict=True)
  ]
  # Its batches are none of those that λ was tuned on.
  key = jax.random.fold_in(jax.random.key(0), 1)
  found = sweep(jnp.asarray(grid), key, clip, batches=sweep_batches)
  return np.stack(paths), np.asarray(found)


def draw(path, grid, results):
  sheet = figure.Figure(figsize=(8, 3.2), layout="constrained")
  left, right = sheet.subplots(1, 2)
  for color, (name, (paths, found)) in zip(
    ("C0", "C3"), results.items(), strict=True
  ):
    mean, error = found.mean(1), found.std(1) / np.sqrt(found.shape[1])
    left.fill_between(
      grid, mean - 2 * error, mean + 2 * error, color=color, alpha=0.3
    )
    left.plot(grid, mean, color, label=f"{name}: sweep")
    ends = paths[:, -1]
    left.plot(
      ends, np.interp(ends, grid, mean), color + "o", label=f"{name}: tuned"
    )
    for line in paths:
      right.plot(line, color, lw=1)
    right.axhline(
      grid[mean.argmax()], color=color, ls=":", label=f"{name}: best of sweep"
    )
  left.set(xlabel="λ", ylabel="value after the update")
  left.legend(fontsize=7)
  right.set(xlabel="step of Adam", ylabel="λ", ylim=(0, 1))
  right.legend(fontsize=7, loc="lower right")
  sheet.savefig(path, dpi=90)


def show(name, grid, seeds, paths, found):
  mean, error = found.mean(1), found.std(1) / np.sqrt(found.shape[1])
  best = mean.argmax()
  print(f"\n{name}")
  for i in sorted({0, best, len(grid) - 1}):
    mark = " (best)" if i == best else ""
    print(
      f"  sweep: lambda {grid[i]:.2f} gives {mean[i]:.3f}"
      f" +- {error[i]:.3f}{mark}"
    )
  for seed, line in zip(seeds, paths, strict=True):
    value = np.interp(line[-1], grid, mean)
    print(
      f"  seed {seed}: lambda {line[0]:.2f} -> {line[-1]:.3f}, which gives"
      f" {value:.3f} on the sweep"
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", default="docs/lambda.png")
  path = parser.parse_args().output
  grid, seeds, results = np.linspace(0.0, 1.0, 21), range(len(STARTS)), {}
  before = chain_lib.solve(CHAIN, jnp.full((CHAIN.size, 2), 0.5)).mean()
  print(f"{CHAIN}, {EPISODES} episodes of at most {LIMIT} steps")
  print(f"value before the update: {before:.3f}")
  for name, clip in CLIPS.items():
    results[name] = run(
      clip,
      seeds=seeds,
      starts=STARTS,
      num_steps=100,
      batches=64,
      grid=grid,
      sweep_batches=1024,
    )
    show(name, grid, seeds, *results[name])
  draw(path, grid, results)
  print(f"wrote {path}")


if __name__ == "__main__":
  main()
