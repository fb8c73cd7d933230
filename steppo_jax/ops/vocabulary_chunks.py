"""Tokens in chunks, which devices that share a vocabulary bring together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Split(NamedTuple):
  """How devices share the work on the vocabulary.

  Attributes:
    mesh: The devices.
    rows: Axes of the mesh whose devices hold different rows.
    vocabulary: Axes whose devices each take a part of the vocabulary. Those
      among them that are in `rows` exchange their hidden states for it.
  """

  mesh: jax.sharding.Mesh
  rows: tuple[str, ...]
  vocabulary: tuple[str, ...]

  @property
  def gathered(self) -> tuple[str, ...]:
    """Axes over which hidden states are brought together."""
    return tuple(axis for axis in self.vocabulary if axis in self.rows)

  def parts(self, axes: Sequence[str]) -> int:
    """Number of devices along some axes."""
    return math.prod(self.mesh.shape[axis] for axis in axes)


class Options(NamedTuple):
  """What is fixed while tracing; `size` is V and `tokens` those at once."""

  size: int
  tokens: int
  tile: int
  temperature: float
  softcap: float | None
  split: Split | None


class Chunks:
  """The wanted tokens of this device, some at a time, and those of others.

  Devices meet in one order, which is that of their data: no two meetings are
  under way at once, as XLA's CPU runtime could begin them in another order on
  each device and then wait for ever.
  """

  def __init__(self, options: Options, parent, wanted, *after):
    self._options, length = options, wanted.shape[1]
    if options.split is not None:
      wanted, *_ = jax.lax.optimization_barrier((wanted, *after))
    flat, n = wanted.reshape(-1), wanted.size
    # Stable: tokens that are neighbours stay so.
    order = jnp.argsort(~flat, stable=True)
    fill = -n % options.tokens
    self.live = jnp.pad(flat[order], (0, fill))
    self.order = jnp.pad(order, (0, fill))
    own = parent.reshape(-1)[self.order]
    self._context = self.order // length * length + own
    self.count = -(-jnp.sum(flat) // options.tokens)
    if options.split is not None:
      # All devices go through the loop equally often: they meet inside of it.
      axes = options.split.mesh.axis_names
      self.count = jax.lax.pmax(self.count, axes)
      self.order, self.count = jax.lax.optimization_barrier(
        (self.order, self.count)
      )

  def hidden(self, i, hidden):
    """Hidden states that predict the i-th chunk of each device."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    cut = lambda x: self._cut(x, i, 0)
    x = jnp.where(cut(self.live)[:, None], rows[cut(self._context)], 0)
    return self._together(x)

  def numbers(self, *arrays):
    """(i) -> those of the i-th chunk of each device, of int32 [B, T] each.

    They are 0 where a token is not wanted.
    """
    found = jnp.stack([x.reshape(-1)[self.order] for x in arrays])
    found = self._together(jnp.where(self.live, found, 0)[None])
    return lambda i: jnp.moveaxis(self._cut(found, i, 2), 1, 0).reshape(
      len(arrays), -1
    )

  def added(self, dx, shape):
    """Gradient [B, T, D] from that of the hidden states in order of chunks."""
    dx = dx.astype(jnp.float32)
    # Tokens may share a parent, whose gradients add up.
    found = jnp.zeros((math.prod(shape[:2]), shape[2]), jnp.float32)
    return found.at[self._context].add(dx).reshape(shape)

  def _cut(self, array, i, axis):
    size = self._options.tokens
    return jax.lax.dynamic_slice_in_dim(array, i * size, size, axis)

  def _together(self, array):
    """What all devices that share the vocabulary with this one hold."""
    split = self._options.split
    if split is None or not split.gathered:
      return array
    return jax.lax.all_gather(array, split.gathered, tiled=True)

  def own(self, array):
    """This device's part of what was computed for all."""
    split, size = self._options.split, self._options.tokens
    if split is None or not split.gathered:
      return array
    first = jax.lax.axis_index(split.gathered) * size
    return jax.lax.dynamic_slice_in_dim(array, first, size)

  def restored(self, array, shape):
    """[N] numbers in the order of chunks as [B, T], 0 where not wanted."""
    n = math.prod(shape)
    array = jnp.where(self.live, array, 0.0)[:n]
    back = jnp.zeros(n, array.dtype).at[self.order[:n]].set(array)
    return back.reshape(shape)
