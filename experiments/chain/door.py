"""A key and a door, small enough to be solved exactly; not an experiment.

A corridor of `size` places. The key lies at place 1 and is taken by going
there, the door is past the right end and opens with the key: reward 1, and the
episode ends. Past the left end is a pit, which ends the episode without reward.
Action 1 moves right, action 0 left, and with probability `slip` the other one
happens; at the right end nobody moves right without the key. A state is a place
without the key, 0 .. size - 1, or with it, size .. 2 size - 1. An action is
written in some tokens, fewer for left than for right.
"""

from typing import NamedTuple

import chain as chain_lib
import jax
import jax.numpy as jnp
import numpy as np


class Door(NamedTuple):
  """Places, probability of a slip, tokens of left and right, limit of steps."""

  size: int = 6
  slip: float = 0.1
  lengths: tuple[int, int] = (2, 4)
  limit: int = 20

  @property
  def num_states(self) -> int:
    return 2 * self.size


def tables(door: Door) -> tuple[np.ndarray, np.ndarray]:
  """[2, n, n] probability of the next state, [2, n] that of the reward.

  What is missing to 1 is the pit.
  """
  n = door.num_states
  moved, won = np.zeros((2, n, n)), np.zeros((2, n))
  for state in range(n):
    key, place = divmod(state, door.size)
    for way, step in enumerate((-1, 1)):
      to = place + step
      if to == door.size and key:
        won[way, state] = 1.0
      elif to >= 0:
        to = min(to, door.size - 1)
        has = key or to == 1
        moved[way, state, to + door.size * has] = 1.0
  mix = lambda x: (1 - door.slip) * x + door.slip * x[::-1]
  return mix(moved), mix(won)


def policy(door: Door, right_way: float) -> jax.Array:
  """[n, 2] policy that goes to the key, then to the door, so often."""
  to_door = (jnp.arange(door.num_states) >= door.size).astype(int)
  other = jnp.full((door.num_states, 2), 1.0 - right_way)
  return other.at[jnp.arange(door.num_states), to_door].set(right_way)


def values(door: Door, chances: jax.Array, *, discount, clock: str):
  """Exact values without a limit of steps, by dynamic programming.

  Args:
    door: The world.
    chances: [n, 2] policy.
    discount: γ per step or token.
    clock: "step" or "token", what γ counts.

  Returns:
    V [n] before a step, and [n, 2] what follows an action: the value at its
    last token, r + γ V of the next state, in the mean.
  """
  moved, won = (jnp.asarray(x, jnp.float32) for x in tables(door))
  extra = jnp.asarray(door.lengths) - 1 if clock == "token" else jnp.zeros(2)
  before = chances * discount**extra
  step = jnp.einsum("sa,ast->st", before, moved)
  paid = jnp.einsum("sa,as->s", before, won)
  value = jnp.linalg.solve(jnp.eye(door.num_states) - discount * step, paid)
  after = won + discount * jnp.einsum("ast,t->as", moved, value)
  return value, after.T


def true_advantages(door: Door, chances: jax.Array, discount: float):
  """Exact advantages [limit, n, 2] for two aims, by name.

  "discounted": γ per step and no limit, the same at every time.
  "success": the probability of the reward within the steps that are left.
  """
  value, follows = values(door, chances, discount=discount, clock="step")
  forever = jnp.broadcast_to(
    follows - value[:, None], (door.limit, *follows.shape)
  )
  moved, won = (jnp.asarray(x, jnp.float32) for x in tables(door))

  def body(later, _):
    follows = (won + jnp.einsum("ast,t->as", moved, later)).T
    value = jnp.sum(chances * follows, axis=1)
    return value, follows - value[:, None]

  _, left = jax.lax.scan(
    body, jnp.zeros(door.num_states), None, length=door.limit
  )
  return {"discounted": forever, "success": left[::-1]}


def visits(door: Door, chances: jax.Array) -> jax.Array:
  """[limit, n] expected visits of a state at a time, from `start`."""
  moved, _ = tables(door)
  step = jnp.einsum("sa,ast->st", chances, jnp.asarray(moved, jnp.float32))
  body = lambda here, _: (here @ step, here)
  return jax.lax.scan(body, start(door), None, length=door.limit)[1]


def start(door: Door) -> jax.Array:
  """[n] probability of the first state: right of the key, without it."""
  first = (jnp.arange(door.num_states) >= 2) & (
    jnp.arange(door.num_states) < door.size
  )
  return first / first.sum()


def sample(
  door: Door, chances: jax.Array, key: jax.Array, *, episodes: int, group: int
) -> chain_lib.Steps:
  """Episodes cut off at the limit; those of a group share their first state."""
  start_key, walk_key = jax.random.split(key)
  first = jax.random.choice(
    start_key, door.num_states, (episodes // group,), p=start(door)
  )
  state = jnp.repeat(first, group)
  moved, won = (jnp.asarray(x, jnp.float32) for x in tables(door))
  pit = 1.0 - moved.sum(-1) - won
  # Columns n and n + 1 of the next state: the door and the pit.
  next_logits = jnp.log(
    jnp.concatenate([moved, won[..., None], pit[..., None]], axis=-1) + 1e-30
  )

  def body(carry, key):
    state, live = carry
    act_key, move_key = jax.random.split(key)
    right = jax.random.uniform(act_key, (episodes,)) < chances[state, 1]
    action = right.astype(int)
    after = jax.random.categorical(move_key, next_logits[action, state])
    ended = after >= door.num_states
    reward = jnp.where(live & (after == door.num_states), 1.0, 0.0)
    after = jnp.where(ended, 0, after)
    return (after, live & ~ended), (state, action, reward, live, ended, after)

  keys = jax.random.split(walk_key, door.limit)
  _, columns = jax.lax.scan(body, (state, state >= 0), keys)
  state, action, reward, live, ended, after = (x.T for x in columns)
  final = jnp.arange(door.limit) == door.limit - 1
  flat = lambda x, null: jnp.pad(
    x.reshape(-1), (1, 0), constant_values=jnp.asarray(null, x.dtype)
  )
  return chain_lib.Steps(
    state=flat(state, 0),
    action=flat(action, 0),
    reward=flat(reward, 0),
    live=flat(live, False),
    last=flat(~live | ended | final, True),
    truncated=flat(live & final & ~ended, False),
    after=flat(after, 0),
  )
