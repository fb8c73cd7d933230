"""An Equinox module under the update of StepPO: `python equinox_model.py`.

The world is that of `own_model`. Policy and critic are modules; their arrays
are trained, and what else they hold (activations, sizes) is the other half that
`equinox.partition` gives. Needs `pip install equinox`.
"""

import dataclasses
import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import steppo_jax as sj

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import own_model


class Network(eqx.Module):
  """An embedding of the token before, and a small network on it."""

  embedding: eqx.nn.Embedding
  layers: eqx.nn.MLP

  def __init__(self, outputs, key):
    first, second = jax.random.split(key)
    self.embedding = eqx.nn.Embedding(1 + own_model.COLOURS, 8, key=first)
    self.layers = eqx.nn.MLP(8, outputs, 16, 1, key=second)

  def __call__(self, token):
    return self.layers(self.embedding(token))


def train(updates, *, seed=0):
  """Mean reward of a step in every update, and the module at the end."""
  size, rng = 1 + own_model.COLOURS, np.random.default_rng(seed)
  keys = jax.random.split(jax.random.key(seed))
  policy, static = eqx.partition(Network(size, keys[0]), eqx.is_array)
  critic, of_critic = eqx.partition(Network("scalar", keys[1]), eqx.is_array)

  def log_probs(policy, rows):
    table = jax.vmap(eqx.combine(policy, static))(jnp.arange(size))
    return own_model.log_probs((table,), rows)

  def values(critic, rows):
    table = jax.vmap(eqx.combine(critic, of_critic))(jnp.arange(size))
    return table[rows.tokens]

  row = dataclasses.replace(
    sj.ALGORITHMS["steppo"], clip_low=0.2, clip_high=0.2, kl_coef=0.0
  )
  config = dataclasses.replace(
    own_model.CONFIG, learning_rate=0.02, critic_learning_rate=0.02
  )
  parts = sj.make_parts(
    sj.Model(log_probs, values), row, config, num_updates=updates
  )
  state, rewards = sj.init(parts, policy, critic), []
  step = jax.jit(lambda *x: sj.update(parts, *x))
  for _ in range(updates):
    module = eqx.combine(state.policy, static)
    table = jax.vmap(module)(jnp.arange(size))
    batch, reward = own_model.sample((table,), rng, parts.mesh)
    rewards.append(reward)
    state, _ = step(state, None, batch)
  return rewards, eqx.combine(state.policy, static)


if __name__ == "__main__":
  found, _ = train(40)
  print("mean reward of a step:", " ".join(f"{x:.2f}" for x in found[::5]))
