"""Weights of the learner in the form that the sampler reads.

They go from device to device. The host sees none of them, whatever the number
of processes; it needs weights for checkpoints alone.
"""

import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from steppo_jax.models import lora, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.config import ModelConfig

# Numbers of each array that a policy is told by: an update changes every array.
_MARKED = 4096


def for_sampler(
  config: ModelConfig, params: Any, device: jax.Device | None = None
) -> dict[str, Any]:
  """A copy of a policy for the sampler, on one device of this process.

  One program merges the adapters, turns and cuts the matrices
  (`transformer.by_layer`) and puts together what was split over devices. Those
  products whose type is `config.compute` get their matrices in that type, so
  that they are not converted anew at every call.

  Args:
    config: Sizes of the decoder.
    params: The policy, on any devices or as NumPy arrays. It is not kept, and
      may be donated afterwards.
    device: Where the copy is to be; None for the first of the process.
  """
  mesh = _mesh_of(params)
  device = device or jax.local_devices()[0]
  here = functools.partial(_here, device)
  if mesh is None:
    # Arrays of the host go there too; `device_put` would not copy them.
    with jax.default_device(device):
      return _program(config, None)(jax.tree.map(here, params))
  return jax.tree.map(here, _program(config, mesh)(params))


def marked(params: Any) -> Any:
  """The first 4,096 numbers of each array of a policy, as NumPy arrays.

  They tell one policy of a run from another. Of an array that is split over
  devices only these are put together.
  """
  mesh = _mesh_of(params)
  if mesh is None:
    here = functools.partial(_here, jax.local_devices()[0])
    params = jax.tree.map(here, params)
  return jax.device_get(_first(mesh)(params))


def mark(params: Any) -> str:
  """Tells one policy from another.

  Args:
    params: Parameters on any devices or as NumPy arrays.
  """
  digest = hashlib.blake2b(digest_size=16)
  for numbers in jax.tree.leaves(marked(params)):
    digest.update(numbers.tobytes())
  return digest.hexdigest()


def _mesh_of(params: Any) -> Mesh | None:
  """The devices that a policy is split over; None if each has all of it."""
  for leaf in jax.tree.leaves(params):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
      return leaf.sharding.mesh
  return None


@functools.lru_cache(maxsize=4)
def _program(config: ModelConfig, mesh: Mesh | None):
  # On CPU logits are float32 products whatever the type of activations.
  table = "float32" if jax.default_backend() == "cpu" else config.compute
  kinds = {transformer.TURNED: config.compute, "embedding": table}

  def one(path, x):
    narrow = kinds.get(path[-1].key, x.dtype)
    if jnp.dtype(narrow).itemsize < x.dtype.itemsize:
      return x.astype(narrow)
    # An array that is returned as it came would be the learner's own, which the
    # next update takes.
    return jnp.copy(x)

  def prepare(params):
    by_layer = transformer.by_layer(lora.merge(params))
    return jax.tree_util.tree_map_with_path(one, by_layer)

  return jax.jit(prepare, out_shardings=_everywhere(mesh))


@functools.lru_cache(maxsize=4)
def _first(mesh: Mesh | None):
  def one(x):
    for axis in range(x.ndim):
      inside = math.prod(x.shape[axis + 1 :])
      needed = min(x.shape[axis], -(-_MARKED // inside))
      x = jax.lax.slice_in_dim(x, 0, needed, axis=axis)
      if needed > 1:
        break
    return x.reshape(-1)[:_MARKED]

  first = lambda params: jax.tree.map(one, params)
  return jax.jit(first, out_shardings=_everywhere(mesh))


def _everywhere(mesh: Mesh | None) -> NamedSharding | None:
  return None if mesh is None else mesh_lib.replicated(mesh)


def _here(device: jax.Device, x: Any) -> Any:
  """An array that is whole on each of its devices, on one of ours."""
  if not isinstance(x, jax.Array):
    return x
  for shard in x.addressable_shards:
    if shard.device == device:
      return shard.data
  return jax.device_put(x.addressable_data(0), device)
