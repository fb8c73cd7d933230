"""Log-probabilities with the vocabulary in tiles and split over devices."""

import functools

import chex
import jax
import jax.numpy as jnp

from steppo_jax.ops.vocabulary_chunks import Chunks, Options, Split

# Most tokens and rows of the table that a device multiplies at once: 32 MiB of
# logits, which a TPU keeps in its vector memory.
TOKENS, TILE = 4096, 2048


def tiled_logprobs(
  hidden: chex.Array,
  embedding: chex.Array,
  tokens: chex.Array,
  parent: chex.Array,
  wanted: chex.Array,
  *,
  chunk: int,
  temperature: float,
  softcap: float | None,
  split: Split | None,
) -> tuple[chex.Array, chex.Array]:
  """`next_token_logprobs`, the vocabulary in tiles and split over devices.

  The forward pass keeps the sum of exponentials of each token, and the backward
  pass makes the logits again, a tile of the vocabulary at a time: no array of
  tokens times V is ever held or written. It has a gradient, but no forward-mode
  and no second derivative; `next_token_logprobs` has those.

  With `split` each device multiplies the tokens of all devices that share a
  vocabulary by its own part of the table, and what they exchange is hidden
  states, three numbers a token, and the gradient of the hidden states. The
  table itself goes from where it lies to those parts once, outside of the loop
  over tokens. With no axis in `split.vocabulary` every device takes the whole
  table.

  Args:
    hidden: [B, T, D] hidden states; the products have their type and are
      summed in float32.
    embedding: [V, D] output embedding.
    tokens: [B, T] int32.
    parent: [B, T] int32 in-row index of the token whose logits predict this
      one. A wanted root would be predicted by itself: of no meaning.
    wanted: [B, T] bool, True on the tokens whose numbers are needed.
    chunk: The logits held at once, on all devices together, are at most those
      of `chunk` tokens, if that is a number of tiles; at least B.
    temperature: τ of the distribution softmax(logits / τ), above 0.
    softcap: c in logits = c tanh(logits / c), before the temperature; None for
      none.
    split: The devices; None for one, or where this runs inside of a program
      that is written for one.

  Returns:
    log p(token) [B, T] and the entropy in nats of the distribution it was
    drawn from [B, T], both float32 and 0 where not wanted.

  Raises:
    AssertionError: the shapes do not fit each other.

  Source: the split is that of Megatron-LM, arXiv:1909.08053, section 3; the
  recomputed softmax that of Cut Cross-Entropy, arXiv:2411.09009.
  """
  return _tiled(
    *_prepared(
      hidden, embedding, tokens, parent, wanted, chunk, temperature, softcap,
      split,
    )
  )  # fmt: skip


def tiled_logprobs_and_energies(
  hidden: chex.Array,
  embedding: chex.Array,
  tokens: chex.Array,
  parent: chex.Array,
  wanted: chex.Array,
  *,
  chunk: int,
  temperature: float,
  softcap: float | None,
  split: Split | None,
) -> tuple[chex.Array, chex.Array, chex.Array]:
  """`tiled_logprobs`, and the energy of the logits, in one pass.

    E = -log Σ exp(logits)

  The logits of the energy are those before the temperature divides them, as in
  `logprobs.next_token_logprobs_and_energies`. It is for policies that no update
  trains: there is no gradient.

  Args:
    hidden: See `tiled_logprobs`, for all arguments.
    embedding: See there.
    tokens: See there.
    parent: See there.
    wanted: See there.
    chunk: See there.
    temperature: See there.
    softcap: See there.
    split: See there.

  Returns:
    log p(token), entropy and energy, [B, T] each, float32 and 0 where not
    wanted.

  Raises:
    AssertionError: the shapes do not fit each other.
  """
  options, *arrays = _prepared(
    hidden, embedding, tokens, parent, wanted, chunk, temperature, softcap,
    split,
  )  # fmt: skip
  # At temperature 1 the sum that normalises the softmax is that of the energy.
  apart = temperature != 1
  forward = functools.partial(_forward, untempered=apart)
  logp, entropy, total, *energy = _each_device(
    options, forward, arrays, "rrrr" if apart else "rrr"
  )
  return logp, entropy, energy[0] if apart else -total


def _prepared(
  hidden, embedding, tokens, parent, wanted, chunk, temperature, softcap, split
):
  """The options, and the arrays with the table where devices take it from."""
  chex.assert_rank([hidden, embedding], [3, 2])
  chex.assert_equal_shape([tokens, parent, wanted, hidden[..., 0]])
  if jax.default_backend() == "cpu":  # jaxlib 0.7.2 has no such product there
    hidden = hidden.astype(jnp.float32)
  table = embedding.astype(hidden.dtype)
  size, devices, parts = table.shape[0], 1, 1
  if split is not None:
    devices, parts = split.mesh.size, split.parts(split.vocabulary)
    table = jnp.pad(table, ((0, -size % parts), (0, 0)))
    table = jax.lax.with_sharding_constraint(
      table, _on(split, split.vocabulary or None, None)
    )
  tile = min(TILE, table.shape[0] // parts)
  together = 1 if split is None else split.parts(split.gathered)
  most = tokens.size // (1 if split is None else split.parts(split.rows))
  at_once = min(TOKENS, max(chunk * size // (devices * tile), 1))
  options = Options(
    size, min(max(at_once // together, 1), most), tile, temperature, softcap,
    split,
  )  # fmt: skip
  arrays = (hidden, table, tokens, parent, wanted)
  return options, *map(jnp.asarray, arrays)


def _on(split: Split, *axes) -> jax.sharding.NamedSharding:
  spec = jax.sharding.PartitionSpec(*axes)
  return jax.sharding.NamedSharding(split.mesh, spec)


# `options` first, then (hidden, table, tokens, parent, wanted).
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(options: Options, *arrays):
  return _each_device(options, _forward, arrays, "rrr")[:2]


def _tiled_forward(options, *given):
  arrays = tuple(array.value for array in given)
  logp, entropy, total = _each_device(options, _forward, arrays, "rrr")
  # Whether the table is trained is said by a tuple's length: residuals are
  # arrays. Under adapters it is not, and its gradient is most of the work.
  trained = (None,) if given[1].perturbed else ()
  return (logp, entropy), (arrays, total, entropy, trained)


def _tiled_backward(options, saved, cotangents):
  arrays, total, entropy, trained = saved
  zero = lambda x: isinstance(x, jax.custom_derivatives.SymbolicZero)
  pulled = tuple(
    jnp.zeros(x.shape, x.dtype) if zero(x) else x for x in cotangents
  )
  backward = functools.partial(
    _backward, trained=bool(trained), spread=not zero(cotangents[1])
  )
  found = _each_device(
    options, backward, (*arrays, total, entropy, *pulled),
    "rt" if trained else "r",
  )  # fmt: skip
  return found[0], found[1] if trained else None, None, None, None


_tiled.defvjp(_tiled_forward, _tiled_backward, symbolic_zeros=True)


def _each_device(options: Options, function, arrays, returned: str):
  """function(options, *arrays) on each device's rows and part of the table.

  `returned` has a letter for each array that comes back: "r" is split by rows,
  "t" as the table is.
  """
  function = functools.partial(function, options)
  split = options.split
  if split is None:
    return function(*arrays)
  rows = jax.sharding.PartitionSpec(split.rows)
  table = jax.sharding.PartitionSpec(split.vocabulary or None)
  return jax.shard_map(
    function,
    mesh=split.mesh,
    in_specs=tuple(table if i == 1 else rows for i in range(len(arrays))),
    out_specs=tuple(table if kind == "t" else rows for kind in returned),
    check_vma=False,  # each device's gradient is written out below
  )(*arrays)


def _tile(options: Options, table, j):
  """Tile j of this device's table: its first row, its rows, ids, which are new.

  The last tile begins early enough to be whole, and what it shares with the one
  before is not new; nor are rows that stand for no token.
  """
  begin = jnp.minimum(j * options.tile, table.shape[0] - options.tile)
  part = jax.lax.dynamic_slice_in_dim(table, begin, options.tile)
  row = begin + jnp.arange(options.tile)
  ids = row
  if options.split is not None and options.split.vocabulary:
    ids += jax.lax.axis_index(options.split.vocabulary) * table.shape[0]
  return begin, part, ids, (row >= j * options.tile) & (ids < options.size)


def _logits(options: Options, x, part):
  """Logits [N, tile] of hidden states [N, D], and their share before a cap."""
  logits = jnp.einsum("nd,vd->nv", x, part, preferred_element_type=jnp.float32)
  slope = 1.0 / options.temperature
  if options.softcap is not None:
    bent = jnp.tanh(logits / options.softcap)
    logits = options.softcap * bent
    slope *= 1.0 - jnp.square(bent)
  return logits / options.temperature, slope


# Finite, so that no infinity is taken from another.
_NOTHING = -1e30


def _forward(
  options: Options, hidden, table, tokens, parent, wanted, *, untempered=False
):
  """Log-probs, entropies and log-sums of exponentials of one device's rows.

  With `untempered` also the energies of logits that no temperature divides.
  """
  chunks = Chunks(options, parent, wanted, table)
  tiles = -(-table.shape[0] // options.tile)
  targets = chunks.numbers(tokens)

  def one(i, found):
    x, (y,) = chunks.hidden(i, hidden), targets(i)

    warm = lambda x: jnp.exp(options.temperature * x)

    def add(j, carry):
      # Sums of exp(z - top) and of that times (z - top), and the logit of y.
      top, total, moment, chosen, *flat = carry
      _, part, ids, new = _tile(options, table, j)
      z, _ = _logits(options, x, part)
      peak = jnp.maximum(top, jnp.where(new, z, _NOTHING).max(-1))
      total, moment = _moved(top, peak, total, moment)
      weight = jnp.where(new, jnp.exp(z - peak[:, None]), 0.0)
      total += weight.sum(-1)
      moment += jnp.where(new, weight * (z - peak[:, None]), 0.0).sum(-1)
      here = new & (ids == y[:, None])
      chosen += jnp.where(here, z, 0.0).sum(-1)
      more = jnp.where(new, warm(z - peak[:, None]), 0.0).sum(-1)
      flat = (warm(top - peak) * x + more for x in flat)
      return peak, total, moment, chosen, *flat

    zero = jnp.zeros(y.shape, jnp.float32)
    start = (zero + _NOTHING, zero, zero, zero, *((zero,) * untempered))
    top, total, moment, chosen, *flat = jax.lax.fori_loop(0, tiles, add, start)
    if options.split is not None and options.split.vocabulary:
      over = options.split.vocabulary
      peak = jax.lax.pmax(top, over)
      flat = (warm(top - peak) * x for x in flat)
      sums = jnp.stack([*_moved(top, peak, total, moment), chosen, *flat])
      top, (total, moment, chosen, *flat) = peak, jax.lax.psum(sums, over)
    total, spread = top + jnp.log(total), jnp.log(total) - moment / total
    energy = (-options.temperature * top - jnp.log(x) for x in flat)
    new = chunks.own(jnp.stack([chosen - total, spread, total, *energy], -1))
    return jax.lax.dynamic_update_slice_in_dim(
      found, new, i * options.tokens, 0
    )

  found = jnp.zeros((chunks.order.size, 3 + untempered), jnp.float32)
  found = jax.lax.fori_loop(0, chunks.count, one, found)
  return tuple(chunks.restored(x, wanted.shape) for x in found.T)


def _moved(top, peak, total, moment):
  """Sums of exp(z - top), alone and times (z - top), for another `top`."""
  shrink, down = jnp.exp(top - peak), top - peak
  return shrink * total, shrink * (moment + total * down)


def _backward(
  options: Options, hidden, table, tokens, parent, wanted, total, entropy,
  dlogp, dentropy, *, trained: bool, spread: bool,
):  # fmt: skip
  """Gradients of one device's hidden states and, if trained, of its table.

  With p = softmax(z), H its entropy and 1 at the token y itself,
  d log p(y) / dz = 1 - p and dH / dz = -p (log p + H).
  """
  chunks = Chunks(options, parent, wanted, table, dlogp, dentropy)
  tiles = -(-table.shape[0] // options.tile)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  # As int32, so that all are sent at once.
  as_type = jax.lax.bitcast_convert_type
  found = (as_type(x, jnp.int32) for x in (total, entropy, dlogp, dentropy))
  told = chunks.numbers(tokens, *found)

  def one(i, carry):
    x = chunks.hidden(i, hidden)
    y, *floats = told(i)
    log_sum, held, up, up_entropy = (as_type(x, jnp.float32) for x in floats)

    def add(j, carry):
      dx, dtable = carry
      begin, part, ids, new = _tile(options, table, j)
      z, slope = _logits(options, x, part)
      log_p = z - log_sum[:, None]
      p = jnp.where(new, jnp.exp(log_p), 0.0)
      dz = up[:, None] * ((new & (ids == y[:, None])) - p)
      if spread:
        dz -= up_entropy[:, None] * p * (log_p + held[:, None])
      dz = (dz * slope).astype(part.dtype)
      dx += product("nv,vd->nd", dz, part)
      if trained:
        old = jax.lax.dynamic_slice_in_dim(dtable, begin, options.tile)
        old += product("nv,nd->vd", dz, x)
        dtable = jax.lax.dynamic_update_slice_in_dim(dtable, old, begin, 0)
      return dx, dtable

    dfound, dtable = carry
    start = jnp.zeros(x.shape, jnp.float32), dtable
    dx, dtable = jax.lax.fori_loop(0, tiles, add, start)
    dx = _summed(options, dx.astype(hidden.dtype))
    return jax.lax.dynamic_update_slice_in_dim(
      dfound, dx, i * options.tokens, 0
    ), dtable

  width = hidden.shape[-1]
  start = (
    jnp.zeros((chunks.order.size, width), hidden.dtype),
    jnp.zeros(table.shape if trained else (), jnp.float32),
  )
  dx, dtable = jax.lax.fori_loop(0, chunks.count, one, start)
  dhidden = chunks.added(dx, hidden.shape).astype(hidden.dtype)
  if not trained:
    return (dhidden,)
  split = options.split
  if split is not None:
    others = tuple(
      axis
      for axis in split.rows
      if axis not in split.vocabulary and split.mesh.shape[axis] > 1
    )
    dtable = jax.lax.psum(dtable, others) if others else dtable
  return dhidden, dtable.astype(table.dtype)


def _summed(options: Options, dx):
  """This device's tokens' sum of what each part of the vocabulary found."""
  split = options.split
  if split is None:
    return dx
  rest = tuple(a for a in split.vocabulary if a not in split.rows)
  if rest:
    dx = jax.lax.psum(dx, rest)
  if split.gathered:
    dx = jax.lax.psum_scatter(dx, split.gathered, tiled=True)
  return dx
