"""Drawing tokens: two uniform numbers a token, whatever the vocabulary."""

import chex
import jax
import jax.numpy as jnp

# Tokens of a block. A token is drawn by block and then inside its block: sums
# over a block are exact enough that no token is out of reach of 24 random bits.
BLOCK = 64


def request_keys(seed: chex.Array, purpose: chex.Array) -> chex.Array:
  """One key a request: the integers of [N, I] folded into the seed in turn."""

  def one(numbers):
    def fold(key, number):
      return jax.random.fold_in(key, number), None

    return jax.lax.scan(fold, jax.random.key(seed), numbers)[0]

  return jax.vmap(one)(purpose)


def tokens(
  logits: chex.Array,
  keys: chex.Array,
  index: chex.Array,
  temperature: chex.Array,
  axis: str | None = None,
) -> tuple[chex.Array, chex.Array]:
  """Draws one token a row from softmax(logits / temperature).

  The same key and index give the same token, whatever the other rows, and
  however many devices share the vocabulary.

  Args:
    logits: [N, V] float32 or wider: probabilities of bfloat16 would be added
      up to one token's last bit, and most tokens never be reached.
    keys: [N] PRNG keys.
    index: [N] int32, which draw of its key this is.
    temperature: [N] float32. 0 takes the first of the most likely tokens, with
      the log-probs of temperature 1.
    axis: Each device of that axis has V of the tokens, whole blocks of them;
      those that stand for nothing have -inf. None for one device.

  Returns:
    Tokens [N] int32 and their log-probs [N] float32. A token of probability 0
    is never drawn.

  Raises:
    TypeError: the logits are narrower than float32.
  """
  if jnp.finfo(logits.dtype).bits < 32:
    raise TypeError(f"logits must be float32, these are {logits.dtype}")
  n, v = logits.shape
  logits = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
  blocks = -(-v // BLOCK)
  top, first = logits.max(-1, keepdims=True), 0
  likeliest = _first(logits == top)
  if axis is not None:
    first = jax.lax.axis_index(axis) * blocks  # block of this device
    top, likeliest = _of_all(top, first * BLOCK + likeliest, axis)
  draw = lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (2,))
  chance = jax.vmap(draw)(keys, index)
  weight = jnp.pad(jnp.exp(logits - top), ((0, 0), (0, blocks * BLOCK - v)))
  weight = weight.reshape(n, blocks, BLOCK)
  sums = weight.sum(-1)
  if axis is not None:
    sums = jax.lax.all_gather(sums, axis, axis=1, tiled=True)
  block, total = _invert(sums, chance[:, 0])
  inside = _column(weight, block - first, axis)
  token = block * BLOCK + _invert(inside, chance[:, 1])[0]
  token = jnp.where(temperature > 0, token, likeliest)
  chosen = _column(logits, token - first * BLOCK, axis)
  return token, chosen - top[:, 0] - jnp.log(total)


def _of_all(top, token, axis):
  """Largest logit [N, 1] and first token [N] that has it, over devices.

  Both come in one exchange, as exchanges that do not wait for each other may
  block a CPU that has fewer threads than devices. Tokens are exact as float32.
  """
  both = jnp.stack([top[:, 0], token.astype(top.dtype)])
  tops, tokens = jax.lax.all_gather(both, axis, axis=1)  # [devices, N]
  top = tops.max(0)
  token = jnp.take_along_axis(tokens, jnp.argmax(tops, 0)[None], axis=0)[0]
  return top[:, None], token.astype(jnp.int32)


def _column(x, at, axis):
  """x[n, at[n]] of an x [N, K, ...] whose K are shared by devices of `axis`."""
  if axis is not None:
    ours = (at >= 0) & (at < x.shape[1])
    at = jnp.clip(at, 0, x.shape[1] - 1)
  rest = [1] * (x.ndim - 2)
  found = jnp.take_along_axis(x, at.reshape(-1, 1, *rest), axis=1)[:, 0]
  if axis is None:
    return found
  return jax.lax.psum(jnp.where(ours.reshape(-1, *rest), found, 0), axis)


def nucleus(
  logits: chex.Array, temperature: chex.Array, top_p: chex.Array
) -> chex.Array:
  """Logits of the likeliest tokens alone, so many as have a share of the mass.

  The most likely tokens whose probabilities add up to `top_p` or more stay, and
  those as likely as the last of them; the others become -inf. What `tokens`
  draws from them, and its log-probs, are of the distribution that is left.

  Args:
    logits: [N, V] float32.
    temperature: [N] float32.
    top_p: [N] float32 in (0, 1]; a row with 1 keeps all.

  Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
  """

  def cut(logits):
    heat = jnp.where(temperature > 0, temperature, 1.0)[:, None]
    falling = jnp.sort(logits, axis=-1)[:, ::-1]
    chance = jax.nn.softmax(falling / heat, axis=-1)
    # Mass in front of each: none in front of the first, which always stays.
    before = jnp.cumsum(chance, axis=-1) - chance
    stays = before < top_p[:, None]
    least = jnp.min(jnp.where(stays, falling, jnp.inf), axis=-1, keepdims=True)
    within = (logits >= least) | (top_p >= 1)[:, None]
    return jnp.where(within, logits, -jnp.inf)

  return jax.lax.cond(jnp.any(top_p < 1), cut, lambda x: x, logits)


def _invert(weight, chance):
  """First index whose cumulated weight exceeds a share of all, and all."""
  cumulated = jnp.cumsum(weight, axis=-1)
  total = cumulated[:, -1]
  above = cumulated > (chance * total)[:, None]
  return _first(above & (weight > 0)), total


def _first(where):
  """[N] int32 first True of [N, K]: an argmax that CPUs vectorise."""
  last = where.shape[-1] - 1
  number = jnp.arange(last + 1, dtype=jnp.int32)
  return jnp.where(where, number, last).min(-1)
