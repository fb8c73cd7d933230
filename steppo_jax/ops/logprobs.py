"""Log-probabilities of given tokens, without ever holding [B, T, V]."""

import chex
import jax
import jax.numpy as jnp


def next_token_logprobs(
  hidden: chex.Array,
  embedding: chex.Array,
  tokens: chex.Array,
  parent: chex.Array,
  *,
  chunk: int,
) -> tuple[chex.Array, chex.Array]:
  """Log-probability of each token given its parent, and the entropy there.

  Args:
    hidden: [B, T, D] hidden states.
    embedding: [V, D] output embedding.
    tokens: [B, T] int32.
    parent: [B, T] int32 in-row index of the token whose logits predict this
      one. Roots are predicted by themselves: a number of no meaning, to be
      masked.
    chunk: Number of tokens projected to the vocabulary at once.

  Returns:
    log p(token) [B, T] and the entropy in nats of the distribution it was
    drawn from [B, T], both float32.

  Raises:
    AssertionError: the shapes do not fit each other.
  """
  chex.assert_rank([hidden, embedding, tokens, parent], [3, 2, 2, 2])
  b, t, d = hidden.shape
  context = jnp.take_along_axis(hidden, parent[..., None], axis=1)
  context, target = context.reshape(-1, d), tokens.reshape(-1)
  pad = -context.shape[0] % chunk
  context = jnp.pad(context, ((0, pad), (0, 0))).reshape(-1, chunk, d)
  target = jnp.pad(target, (0, pad)).reshape(-1, chunk)

  @jax.checkpoint
  def project(args):
    x, y = args
    logits = jnp.einsum("nd,vd->nv", x, embedding).astype(jnp.float32)
    logp = jax.nn.log_softmax(logits, axis=-1)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return jnp.take_along_axis(logp, y[:, None], axis=1)[:, 0], entropy

  logp, entropy = jax.lax.map(project, (context, target))
  shape = (b, t)
  return (
    logp.reshape(-1)[: b * t].reshape(shape),
    entropy.reshape(-1)[: b * t].reshape(shape),
  )
