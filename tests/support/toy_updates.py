"""Updates of a model of one's own that is a table of logits: fast to compile.

The same eight episodes, as an older policy sampled them, serve every row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hand_records import step, trajectory

import steppo_jax as sj
from steppo_jax.learner import state as learner_state

IDS = 6
CONFIG = sj.LearnerConfig(
  num_minibatches=2, actor_epochs=2, critic_epochs=1, critic_warmup=0,
  warmup_steps=0, critic_warmup_steps=0, microbatch_rows=2,
)  # fmt: skip
# Its place until jax 0.8.
_HOME = jax if hasattr(jax, "enable_x64") else jax.experimental
x64 = lambda: _HOME.enable_x64(True)


def _logits(policy, rows):
  before = jnp.take_along_axis(rows.tokens, rows.parent, axis=1)
  return policy[0][before] + policy[1][None, None]


def _sampled(logp, rows):
  return jnp.take_along_axis(logp, rows.tokens[..., None], 2)[..., 0]


def log_probs(policy, rows):
  logp = jax.nn.log_softmax(_logits(policy, rows))
  return _sampled(logp, rows), -(jnp.exp(logp) * logp).sum(-1)


def log_probs_and_energies(policy, rows):
  energy = -jax.nn.logsumexp(_logits(policy, rows), axis=-1)
  return log_probs(policy, rows)[0], energy


def values(critic, rows):
  return critic[0][rows.tokens]


def packed():
  """Eight episodes of two or three steps, in arrays of NumPy's."""
  rng, made = np.random.default_rng(0), []
  for i in range(8):
    count, tokens, steps = 2 + i % 2, [0], []
    for k in range(count):
      prompt = [*tokens, int(rng.integers(1, IDS))]
      answer = [int(x) for x in rng.integers(1, IDS, 1 + (i + k) % 3)]
      made_step = step(
        prompt, answer, k, uid=str(i), reward=float(rng.normal()),
        end="terminated" if k == count - 1 else None,
      )  # fmt: skip
      steps.append(
        dataclasses.replace(
          made_step,
          anchor_obs=str(prompt[-1] % 2),
          group_uid=str(i // 4),
          behaviour_logp=rng.normal(-np.log(IDS), 0.2, len(answer)),
        )
      )
      tokens = prompt + answer
    made.append(trajectory(steps, uid=str(i)))
  found = sj.packing.pack(
    made, np.arange(8) % 2, sj.packing.PackingConfig(row_length=16),
    num_parts=2, rows_multiple=2, pad_id=0,
  )  # fmt: skip
  return learner_state.Batch(found.tokens, found.table, found.rows_used)


def batch(*, reasoning=False):
  """`packed` on the device; every second sampled token may be a thought."""
  made = jax.tree.map(jnp.asarray, packed())
  if not reasoning:
    return made
  sampled = made.tokens.step_ids > 0
  odd = jnp.cumsum(sampled, axis=-1) % 2 == 1
  tokens = made.tokens.replace(reasoning=sampled & odd)
  return made._replace(tokens=tokens)


def draw(seed, *shape, dtype=jnp.float32):
  found = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(found, dtype)


def parameters(seed=1, dtype=jnp.float32):
  """Of a policy."""
  return (
    0.3 * draw(seed, IDS, IDS, dtype=dtype),
    0.1 * draw(seed + 1, IDS, dtype=dtype),
  )


def start(parts, dtype=jnp.float32):
  critic = (
    (0.2 * draw(3, IDS, dtype=dtype),) if parts.algorithm.critic else None
  )
  return sj.init(parts, parameters(1, dtype), critic)


def reference(dtype=jnp.float32):
  return parameters(4, dtype)
