"""A chain of states small enough to be solved exactly; not an experiment.

State s of 0 .. n-1 pays s / (n-1) a step, whatever is done. Action 1 moves
right (n-1 stays), action 0 moves left, and with probability `slip` the other
one happens. Moving left of state 0 ends the episode. Nothing else does: a limit
of steps belongs to whoever samples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Chain(NamedTuple):
  """Number of states, probability of a slip, γ."""

  size: int = 8
  slip: float = 0.1
  discount: float = 0.95


class Steps(NamedTuple):
  """Sampled steps of E episodes in E * limit slots after slot 0, each [S].

  Episodes are adjacent; slots after the end of an episode are not live.
  """

  state: jax.Array
  action: jax.Array
  reward: jax.Array
  live: jax.Array
  last: jax.Array
  truncated: jax.Array
  after: jax.Array


def moves(chain: Chain) -> jax.Array:
  """[2, n, n] probability of the next state; rows sum to less at state 0."""
  left = jnp.eye(chain.size, k=-1)
  right = jnp.eye(chain.size, k=1).at[-1, -1].set(1.0)
  keep, slip = 1.0 - chain.slip, chain.slip
  return jnp.stack([keep * left + slip * right, keep * right + slip * left])


def payoffs(chain: Chain) -> jax.Array:
  """[n] reward of a step from each state."""
  return jnp.arange(chain.size) / (chain.size - 1.0)


def solve(chain: Chain, policy: jax.Array) -> jax.Array:
  """[n] discounted value of each state by dynamic programming.

  Args:
    chain: The chain.
    policy: [n, 2] probability of each action.
  """
  step = jnp.einsum("sa,ast->st", policy, moves(chain))
  return jnp.linalg.solve(
    jnp.eye(chain.size) - chain.discount * step, payoffs(chain)
  )


def sample(
  chain: Chain, policy: jax.Array, key: jax.Array, *, episodes: int, limit: int
) -> Steps:
  """Episodes from uniformly random states, cut off after `limit` steps."""
  start_key, walk_key = jax.random.split(key)
  start = jax.random.randint(start_key, (episodes,), 0, chain.size)

  def body(carry, key):
    state, live = carry
    act_key, slip_key = jax.random.split(key)
    go = jax.random.uniform(act_key, (episodes,)) < policy[state, 1]
    slips = jax.random.uniform(slip_key, (episodes,)) < chain.slip
    after = jnp.minimum(state + jnp.where(go ^ slips, 1, -1), chain.size - 1)
    ended = after < 0
    after = jnp.maximum(after, 0)
    return (after, live & ~ended), (state, go.astype(int), live, ended, after)

  keys = jax.random.split(walk_key, limit)
  _, columns = jax.lax.scan(body, (start, start >= 0), keys)
  state, action, live, ended, after = (x.T for x in columns)
  final = jnp.arange(limit) == limit - 1
  flat = lambda x, null: jnp.pad(
    x.reshape(-1), (1, 0), constant_values=jnp.asarray(null, x.dtype)
  )
  return Steps(
    state=flat(state, 0),
    action=flat(action, 0),
    reward=flat(jnp.where(live, payoffs(chain)[state], 0.0), 0),
    live=flat(live, False),
    last=flat(~live | ended | final, True),
    truncated=flat(live & final & ~ended, False),
    after=flat(after, 0),
  )
