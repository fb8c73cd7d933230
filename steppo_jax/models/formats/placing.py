"""Fills parameters on devices piece by piece, so that the host stays small."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import trees
from steppo_jax.models import out_of_memory, transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import names

# Most bytes of one tensor that are on the host at once, but for a matrix of
# one layer, which is read whole.
PIECE_BYTES = 2**25

# (path such as "layers/q/kernel", shape) -> where the array goes.
Placement = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


class Source(Protocol):
  """A checkpoint whose tensors can be read in part."""

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor that `index` names."""

  def dtype(self, name: str) -> Any:
    """What `read` gives."""


def place(
  source: Source,
  model: ModelConfig,
  rows: Sequence[names.TensorName],
  *,
  placement: Placement | None,
  dtype: Any,
  progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
  """Reads all parameters, each device its own part of each.

  A part that several devices hold is read once. At most one layer's matrix or
  `PIECE_BYTES` of a table are on the host at a time.

  Args:
    source: The checkpoint, whose names and shapes were checked.
    model: Sizes of the decoder.
    rows: What the parameters are called there.
    placement: Where each goes; None for the first device of the process.
    dtype: Of the parameters; None for the stored one, for a matrix whose
      layers have several the one that holds them all.
    progress: Called with (arrays done, arrays in all) after each.

  Returns:
    Nested dicts of arrays.

  Raises:
    RuntimeError: a device has no memory for them.
  """
  like = trees.flatten(transformer.abstract_params(model))
  flat = {}
  for row in rows:
    shape = like[row.ours].shape
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if placement is not None:
      sharding = placement(row.ours, shape)
    layers = model.num_layers if row.ours.startswith("layers/") else 1
    kind = dtype or jnp.result_type(
      *(source.dtype(row.theirs.format(layer)) for layer in range(layers))
    )
    with out_of_memory.explained(
      f"reading {row.ours} of the weights",
      "split the model over more devices (mesh.fsdp, mesh.tensor; to play "
      "alone sampler.tensor)", "take a smaller model",
    ):  # fmt: skip
      flat[row.ours] = _array(source, model, row, shape, sharding, kind)
    if progress is not None:
      progress(len(flat), len(rows))
  return trees.unflatten(dict(sorted(flat.items())))


def _array(source, model, row, shape, sharding, dtype):
  """One parameter, filled on each device from the front to the back."""
  groups: dict[tuple, list] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    full = tuple(
      slice(*part.indices(n)) for part, n in zip(index, shape, strict=True)
    )
    key = tuple((part.start, part.stop) for part in full)
    groups.setdefault(key, []).append((device, full))
  parts = []
  for members in groups.values():
    index = members[0][1]
    local = tuple(part.stop - part.start for part in index)
    buffers = [jnp.zeros(local, dtype, device=device) for device, _ in members]
    for at, piece in _pieces(source, model, row, index):
      for n, (device, _) in enumerate(members):
        buffers[n] = _fill(
          buffers[n], jax.device_put(piece, device), at, how=row.how,
          offset=model.norm_offset,
        )  # fmt: skip
      # Calls would queue up, and their pieces with them.
      jax.block_until_ready(buffers)
    parts += buffers
  return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _pieces(
  source: Source,
  model: ModelConfig,
  row: names.TensorName,
  index: tuple[slice, ...],
) -> Iterator[tuple[int, np.ndarray]]:
  """Where along the first axis each piece of one device's part goes, and it."""
  if row.ours.startswith("layers/"):
    inner = index[1:]
    if row.how in (names.TURNED, names.INTERLEAVED):
      inner = inner[::-1]
    for layer in range(index[0].start, index[0].stop):
      name = row.theirs.format(layer)
      if row.how == names.INTERLEAVED:
        heads = model.num_heads if "/q/" in row.ours else model.num_kv_heads
        piece = _untangle(source, name, heads, model)[inner]
      else:
        piece = source.read(name, inner)
      yield layer - index[0].start, piece[None]
    return
  width = max(1, int(np.prod([p.stop - p.start for p in index[1:]])))
  rows = max(1, PIECE_BYTES // (4 * width))
  for start in range(index[0].start, index[0].stop, rows):
    stop = min(start + rows, index[0].stop)
    part = (slice(start, stop), *index[1:])
    yield start - index[0].start, source.read(row.theirs, part)


def _untangle(source, name, heads, model):
  """Rows of each head in the order of two halves, as rotations pair them."""
  whole = source.read(name, (slice(None), slice(None)))
  half = model.head_dim // 2
  return whole.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(whole.shape)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("how", "offset"))
def _fill(buffer, piece, at, *, how, offset):
  if how in (names.TURNED, names.INTERLEAVED):
    piece = piece.swapaxes(1, 2)
  if how == names.WITH_OFFSET:
    piece = piece - offset
  return jax.lax.dynamic_update_slice_in_dim(
    buffer, piece.astype(buffer.dtype), at, 0
  )


def tensors(
  params: Mapping[str, Any],
  model: ModelConfig,
  rows: Sequence[names.TensorName],
) -> Iterator[tuple[str, np.ndarray]]:
  """Name and value of every tensor as a checkpoint stores it, one at a time."""
  flat = trees.flatten(params)
  for row in rows:
    stacked = row.ours.startswith("layers/")
    for layer in range(model.num_layers) if stacked else (None,):
      leaf = flat[row.ours]
      value = np.asarray(leaf[layer] if stacked else leaf)
      if row.how == names.TURNED:
        value = np.ascontiguousarray(value.T)
      yield row.theirs.format(layer), value
