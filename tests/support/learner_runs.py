"""Updates of the learner on one small batch of real episodes."""

import dataclasses
import functools

import jax
import numpy as np
import worlds

from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner, optimizers
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh
from steppo_jax.packing import options as packing_options
from steppo_jax.packing import rows as packing

CONFIG = learner_options.LearnerConfig(
  learning_rate=1e-2,
  critic_learning_rate=1e-2,
  num_minibatches=2,
  actor_epochs=1,
  critic_epochs=1,
  critic_warmup=0,
  warmup_steps=0,
  critic_warmup_steps=0,
  microbatch_rows=8,
  attention_block=64,
  logprob_chunk=256,
)


def row(name, **changes):
  """A row with a clip wide enough that a few large steps bind it in part."""
  made = dataclasses.replace(algorithms_table.get(name), kl_coef=0.0)
  return dataclasses.replace(made, **changes)


def packed(layout="packed", *, length=worlds.CONTEXT, multiple=8, **options):
  trajectories = worlds.trajectories(6, samples=2)
  config = packing_options.PackingConfig(layout=layout, row_length=length)
  part = [i % CONFIG.num_minibatches for i in range(len(trajectories))]
  return packing.pack(
    trajectories, part, config, num_parts=CONFIG.num_minibatches,
    rows_multiple=multiple, pad_id=0, **options,
  )  # fmt: skip


@functools.lru_cache(maxsize=16)
def learner_of(model, algorithm, config, devices, optimizer):
  """A learner that is traced and compiled once for all tests of a process.

  Args:
    model: Sizes of the decoder.
    algorithm: Row of the table.
    config: Options of the learner.
    devices: Number of devices.
    optimizer: What `optimizers.adamw` is now; the fixture `sgd` replaces it.
  """
  assert optimizer is optimizers.adamw
  return learner.Learner(
    model, algorithm, config, mesh.make_mesh(devices), num_updates=4, seed=0
  )


def run(batch, algorithm, *, devices=1, config=CONFIG, updates=1):
  """Parameters and metrics after some updates on one batch."""
  one = mesh.make_mesh(devices)
  made = learner_of(
    worlds.model(), algorithm, config, devices, optimizers.adamw
  )
  state = made.init(worlds.policy())
  for _ in range(updates):
    state, found = made.update(state, None, learner_state.put_batch(batch, one))
  return jax.device_get(state), jax.device_get(found)


def close(a, b, tolerance=1e-5):
  """Relative to the size of the update, not of the parameters."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)


def forget() -> None:
  """Lets go of what is compiled, for a process that has no room for more."""
  learner_of.cache_clear()
