"""What the critic of a time-limited chain converges to, by bootstrap.

    python experiments/chain/truncation.py [--output docs/truncation.png]

A fixed policy walks a chain whose episodes end at its left end only. Sampling
cuts them off after 10 steps. A table of values is trained on the targets of
`steppo_jax.step_gae` until it has converged, with the critic's value after a
cut (`value`) and with 0 there (`zero`, what public code does). Both are held
against dynamic programming. `zero` is right about another problem: the mean
value of the steps that are left before the limit, which is printed too.
Ten seconds on one core.
"""

import argparse
import functools

import chain as chain_lib
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import figure

import steppo_jax

CHAIN = chain_lib.Chain()
LIMIT = 10
# λ = 1 is what the row `steppo` uses; the targets are then sampled returns.
LAMBDA = 1.0
RIGHT = 0.8  # probability of moving right


def policy(chain):
  return jnp.full((chain.size, 2), RIGHT).at[:, 0].set(1.0 - RIGHT)


def targets(steps, value, chain, *, bootstrap):
  """Value target of every step [S]."""
  follows = steps.truncated if bootstrap == "value" else False
  return steppo_jax.step_gae(
    steps.reward,
    jnp.where(steps.live, value[steps.state], 0.0),
    steps.last,
    jnp.where(follows, value[steps.after], 0.0),
    discount=chain.discount,
    lambda_=LAMBDA,
  )[1]


@functools.partial(
  jax.jit, static_argnames=("chain", "bootstrap", "iterations", "episodes")
)
def train(key, *, chain, bootstrap, iterations, episodes):
  """Tables of values [iterations, n], from 0; the step size falls as 1/i."""

  def body(value, x):
    number, key = x
    steps = chain_lib.sample(
      chain, policy(chain), key, episodes=episodes, limit=LIMIT
    )
    found = targets(steps, value, chain, bootstrap=bootstrap)
    state = jnp.where(steps.live, steps.state, chain.size)
    add = lambda x: jax.ops.segment_sum(x, state, chain.size + 1)[:-1]
    mean = add(found) / jnp.maximum(add(jnp.ones_like(found)), 1.0)
    value = value + (mean - value) / (1.0 + number / 10.0)
    return value, value

  numbers = jnp.arange(iterations, dtype=jnp.float32)
  keys = jax.random.split(key, iterations)
  return jax.lax.scan(body, jnp.zeros(chain.size), (numbers, keys))[1]


def zero_limit(chain):
  """[n] what `zero` converges to: the value of the steps that are left."""
  step = jnp.einsum("sa,ast->st", policy(chain), chain_lib.moves(chain))
  left = [jnp.zeros(chain.size)]  # value of 0, 1, .. LIMIT steps
  for _ in range(LIMIT):
    left.append(chain_lib.payoffs(chain) + chain.discount * step @ left[-1])
  visits = jnp.full(chain.size, 1.0 / chain.size)
  total, weight = 0.0, 0.0
  for age in range(LIMIT):
    total = total + visits * left[LIMIT - age]
    weight = weight + visits
    visits = visits @ step
  return total / weight


def run(*, seeds, iterations, episodes):
  """Exact values [n], the limit of `zero` [n], tables [seeds, iterations, n].

  The tables are in a dictionary by bootstrap.
  """
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  tables = {}
  for bootstrap in ("value", "zero"):
    one = functools.partial(
      train,
      chain=CHAIN,
      bootstrap=bootstrap,
      iterations=iterations,
      episodes=episodes,
    )
    tables[bootstrap] = np.asarray(jax.vmap(one)(keys))
  exact = np.asarray(chain_lib.solve(CHAIN, policy(CHAIN)))
  return exact, np.asarray(zero_limit(CHAIN)), tables


def draw(path, exact, limit, tables):
  sheet = figure.Figure(figsize=(8, 3.2), layout="constrained")
  left, right = sheet.subplots(1, 2)
  left.plot(exact, "k-", label="dynamic programming")
  left.plot(limit, "k:", label="value of the steps left")
  for color, mark, (bootstrap, found) in zip(
    ("C0", "C3"), "ox", tables.items(), strict=True
  ):
    for i, table in enumerate(found[:, -1]):
      label = f"bootstrap={bootstrap}" if i == 0 else None
      left.plot(table, color + mark, label=label)
    for line in np.abs(found - exact).max(-1):
      right.semilogy(line, color, lw=0.8)
  left.set(xlabel="state", ylabel="value", ylim=(0, None))
  left.legend(fontsize=7)
  right.set(xlabel="iteration", ylabel="largest error of the table")
  sheet.savefig(path, dpi=90)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", default="docs/truncation.png")
  path = parser.parse_args().output
  seeds = range(5)
  exact, limit, tables = run(seeds=seeds, iterations=400, episodes=256)
  row = lambda x: " ".join(f"{y:7.3f}" for y in x)
  print(f"chain {CHAIN}, limit {LIMIT}, lambda {LAMBDA}, seeds {list(seeds)}")
  print(f"dynamic programming      {row(exact)}")
  print(f"value of the steps left  {row(limit)}")
  for bootstrap, found in tables.items():
    final = found[:, -1]
    print(f"{bootstrap:5} mean over seeds    {row(final.mean(0))}")
    errors = " ".join(f"{x:.3f}" for x in np.abs(final - exact).max(1))
    share = np.abs(final - exact).max() / exact.max()
    print(
      f"{bootstrap:5} largest error, by seed: {errors} (at most {share:.1%} of"
      " the largest value)"
    )
  draw(path, exact, limit, tables)
  print(f"wrote {path}")


if __name__ == "__main__":
  main()
