"""Log-probabilities of sampled tokens, without ever holding [B, T, V]."""

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops import floats


def next_token_logprobs(
  hidden: chex.Array,
  embedding: chex.Array,
  tokens: chex.Array,
  parent: chex.Array,
  wanted: chex.Array,
  *,
  chunk: int,
  temperature: chex.Numeric,
  softcap: float | None,
  most: chex.Array | None = None,
  skip: bool = True,
) -> tuple[chex.Array, chex.Array]:
  """Log-probability of each token given its parent, and the entropy there.

  Only wanted tokens are projected to the vocabulary: those of a row are moved
  to its front, and chunks of columns without any are skipped. Under vmap the
  chunks are skipped that `most` says are empty, and without it none.

  Args:
    hidden: [B, T, D] hidden states; the products have their type and are
      summed in float32.
    embedding: [V, D] output embedding.
    tokens: [B, T] int32.
    parent: [B, T] int32 in-row index of the token whose logits predict this
      one. A wanted root would be predicted by itself: of no meaning.
    wanted: [B, T] bool, True on the tokens whose numbers are needed.
    chunk: Number of tokens projected to the vocabulary at once, at least B.
    temperature: τ of the distribution softmax(logits / τ), above 0.
    softcap: c in logits = c tanh(logits / c), before the temperature; None for
      none.
    most: Wanted tokens that no row has more of, a scalar that is not mapped
      over by vmap; None where it is not known.
    skip: False projects empty chunks too, without a branch. A second derivative
      of branches takes long to compile.

  Returns:
    log p(token) [B, T] and the entropy in nats of the distribution it was
    drawn from [B, T], both at least float32 and 0 where not wanted.

  Raises:
    AssertionError: the shapes do not fit each other.
  """
  read = lambda logits, y: _logp_and_entropy(logits, y, temperature)
  return _read_logits(
    hidden, embedding, tokens, parent, wanted, read, 2, chunk, softcap, most,
    skip,
  )  # fmt: skip


def next_token_logprobs_and_energies(
  hidden: chex.Array,
  embedding: chex.Array,
  tokens: chex.Array,
  parent: chex.Array,
  wanted: chex.Array,
  *,
  chunk: int,
  temperature: chex.Numeric,
  softcap: float | None,
  most: chex.Array | None = None,
  skip: bool = True,
) -> tuple[chex.Array, chex.Array, chex.Array]:
  """`next_token_logprobs`, and the energy of the logits, in one pass.

    E = -log Σ exp(logits)

  The logits of the energy are those before the temperature divides them.

  Args:
    hidden: See `next_token_logprobs`, for all arguments.
    embedding: See there.
    tokens: See there.
    parent: See there.
    wanted: See there.
    chunk: See there.
    temperature: See there.
    softcap: See there.
    most: See there.
    skip: See there.

  Returns:
    log p(token), entropy and energy, [B, T] each, at least float32 and 0 where
    not wanted.
  """

  def read(logits, y):
    energy = -jax.nn.logsumexp(logits, axis=-1)
    return *_logp_and_entropy(logits, y, temperature), energy

  return _read_logits(
    hidden, embedding, tokens, parent, wanted, read, 3, chunk, softcap, most,
    skip,
  )  # fmt: skip


def _logp_and_entropy(logits, y, temperature):
  warmth = floats.constant(temperature, logits.dtype)
  logp = jax.nn.log_softmax(logits / warmth, axis=-1)
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  return jnp.take_along_axis(logp, y[..., None], axis=-1)[..., 0], entropy


def _read_logits(
  hidden, embedding, tokens, parent, wanted, read, count, chunk, softcap, most,
  skip,
):  # fmt: skip
  """What `read` makes of the logits and ids of a chunk: `count` arrays."""
  chex.assert_rank([hidden, embedding], [3, 2])
  chex.assert_equal_shape([tokens, parent, wanted, hidden[..., 0]])
  b, t = tokens.shape
  if jax.default_backend() == "cpu":  # jaxlib 0.7.2 has no such product there
    hidden = floats.wide(hidden)
  kind = floats.common(hidden)
  embedding = embedding.astype(hidden.dtype)
  width = min(max(chunk // b, 1), t)
  pad = -t % width
  # Stable: the order of a row's own wanted tokens stays.
  order = jnp.argsort(~wanted, axis=1, stable=True)
  take = lambda x: jnp.take_along_axis(x, order, axis=1)

  def columns(x):
    x = jnp.pad(x, ((0, 0), (0, pad)))
    return jnp.moveaxis(x.reshape(b, -1, width), 1, 0)

  context, target, live = map(columns, (take(parent), take(tokens),
                                        take(wanted)))  # fmt: skip

  def project(at, y, live):
    x = jnp.take_along_axis(hidden, at[..., None], axis=1)
    logits = jnp.einsum(
      "btd,vd->btv", x, embedding, preferred_element_type=kind
    )
    if softcap is not None:
      logits = softcap * jnp.tanh(logits / softcap)
    return tuple(jnp.where(live, x, 0.0) for x in read(logits, y))

  def nothing(at, y, live):
    return (jnp.zeros(live.shape, kind),) * count

  def where_any(*args):
    return jax.lax.cond(jnp.any(args[2]), project, nothing, *args)

  @jax.checkpoint
  def body(args):
    first, *args = args
    if not skip:
      return project(*args)
    if most is None:
      return where_any(*args)
    return jax.lax.cond(first < most, where_any, nothing, *args)

  first = width * jnp.arange(context.shape[0], dtype=jnp.int32)
  found = jax.lax.map(body, (first, context, target, live))
  back = jnp.argsort(order, axis=1)
  restore = lambda x: jnp.take_along_axis(
    jnp.moveaxis(x, 0, 1).reshape(b, -1)[:, :t], back, axis=1
  )
  return tuple(map(restore, found))
