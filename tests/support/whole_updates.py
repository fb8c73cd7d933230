"""One whole update of any row of the table on real rollouts."""

import dataclasses
import functools

import jax
import learner_runs
import numpy as np
import worlds

from steppo_jax.learner import learner
from steppo_jax.learner import state as learner_state
from steppo_jax.learner import update as update_lib
from steppo_jax.models import mesh

# One block of queries and one chunk of tokens, so that each row compiles fast.
CONFIG = dataclasses.replace(
  learner_runs.CONFIG, attention_block=worlds.CONTEXT, logprob_chunk=1024
)


@functools.cache
def batch(reasoning=False):
  one = mesh.make_mesh(1)
  packed = learner_runs.packed(reasoning=reasoning)
  return learner_state.put_batch(packed, one)


def batch_of(row):
  """The batch with all that a row reads."""
  return batch("reasoning" in row.wants)


def parts_of(row, **options):
  config = dataclasses.replace(CONFIG, **options)
  return learner.make_spec(
    worlds.model(), row, config, mesh.make_mesh(1), num_updates=4, seed=0
  )


def start(parts):
  """A state whose critic already has opinions."""
  state = learner.init(parts, worlds.policy())
  if state.critic is None:
    return state
  critic = dict(state.critic)
  for seed, name in enumerate(("head", "token_head")):
    if name in critic:
      kernel = jax.random.normal(
        jax.random.key(7 + seed), (worlds.model().width,)
      )
      critic[name] = critic[name] | {"kernel": 0.3 * kernel}
  return state.replace(critic=critic)


def policies(row):
  """The reference and the teacher that a row reads."""
  return (
    worlds.policy(1) if row.reads_reference else None,
    worlds.policy(2) if "teacher" in row.needs else None,
  )


@functools.lru_cache(maxsize=16)
def _compiled(row, options):
  """One update with plain gradient steps, compiled once for all tests."""
  import optax

  parts = parts_of(row, **dict(options))._replace(
    policy_optimizer=optax.sgd(0.05), critic_optimizer=optax.sgd(0.05)
  )
  return parts, jax.jit(functools.partial(update_lib.update, parts))


def updated(row, *, reference=None, teacher=None, **options):
  """State and metrics after one update with plain gradient steps."""
  parts, run = _compiled(row, tuple(sorted(options.items())))
  return jax.device_get(run(start(parts), reference, batch_of(row), teacher))


def distance(a, b):
  """Largest difference between two trees."""
  gaps = jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)
  return max(jax.tree.leaves(gaps))


def forget() -> None:
  """Lets go of what is compiled, for a process that has no room for more."""
  _compiled.cache_clear()
