"""Weights of the learner in the form that the sampler reads.

They go from device to device. The host sees none of them, whatever the number
of processes; it needs weights for checkpoints alone.
"""

import collections
import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from steppo_jax.models import lora, out_of_memory, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.config import ModelConfig
from steppo_jax.sampler import split

# Numbers of each array that a policy is told by: an update changes every array.
_MARKED = 4096


def for_sampler(
  config: ModelConfig, params: Any, mesh: Mesh | None = None
) -> dict[str, Any]:
  """A copy of a policy for the sampler, on devices of this process.

  One program merges the adapters, turns and cuts the matrices
  (`transformer.by_layer`) and puts together what was split over devices, or
  splits it as the sampler does. Those products whose type is `config.compute`
  get their matrices in that type, so that they are not converted anew at every
  call.

  Args:
    config: Sizes of the decoder.
    params: The policy, on any devices or as NumPy arrays. It is not kept, and
      may be donated afterwards.
    mesh: The sampler's devices; see `split.mesh_of`. Each of its axis
      "data" gets a copy, which its axis "tensor" splits, if it has one. None
      for the first device of the process.

  Raises:
    RuntimeError: a device has no memory for the copy.
  """
  with _explained():
    return _copied(config, params, mesh)


def lower(
  config: ModelConfig, params: Any, mesh: Mesh | None = None
) -> jax.stages.Lowered:
  """The program of `for_sampler` as JAX lowers it from shapes.

  Args:
    config: Sizes of the decoder.
    params: Shapes of the policy's parameters with their shardings.
    mesh: The sampler's devices, as for `for_sampler`; they need not be there.

  Returns:
    A `jax.stages.Lowered`, to be compiled for the devices of the shardings.
  """
  parts = split.size(mesh)
  source = _mesh_of(params, cut=parts == 1)
  if source is None and parts > 1:
    source, params = mesh, mesh_lib.shaped(mesh, params)
  elif source is None:
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    where = jax.sharding.SingleDeviceSharding(device)
    params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), params
    )
  return _program(config, source, parts).lower(params)


def arrived(found: Any) -> None:
  """Awaits what `for_sampler` gave.

  The copy is made while Python goes on. If a device has no memory for it, what
  reads the weights first fails, and this says why.

  Args:
    found: What `for_sampler` gave.

  Raises:
    RuntimeError: a device had no memory for the copy.
  """
  with _explained():
    jax.block_until_ready(found)


_explained = functools.partial(
  out_of_memory.explained, "giving the sampler the policy's weights",
  "raise sampler.tensor, so that devices share a copy of them",
  "lower sampler.num_slots", "take compute=bfloat16",
)  # fmt: skip


def _copied(config, params, mesh):
  """What `for_sampler` gives, which need not be there yet."""
  device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
  parts = split.size(mesh)
  source = _mesh_of(params, cut=parts == 1)
  if source is None and parts > 1:
    # No device needs to hold all of it, which the host may write over soon.
    source = mesh
    params = mesh_lib.put(params, mesh_lib.placements(mesh, params))
    found = jax.block_until_ready(_program(config, mesh, parts)(params))
  elif source is None:
    # Arrays of the host go there too; `device_put` would not copy them.
    with jax.default_device(device):
      here = jax.tree.map(functools.partial(_here, device), params)
      found = _program(config, None, 1)(here)
  else:
    found = _program(config, source, parts)(params)
  if mesh is None:
    return jax.tree.map(functools.partial(_here, device), found)
  specs = split.specs(config, parts)
  if parts == 1:
    specs = jax.tree.map(lambda _: specs, found)
  pick = lambda spec, x: _picked(NamedSharding(mesh, spec), x)
  return jax.tree.map(pick, specs, _by_process(found))


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


def _mesh_of(params: Any, *, cut: bool = True) -> Mesh | None:
  """The devices that a policy is on; None for one, or for the host.

  Args:
    params: The policy.
    cut: None also if every device has all of it.
  """
  for leaf in jax.tree.leaves(params):
    where = getattr(leaf, "sharding", None)
    if isinstance(where, NamedSharding) and not (
      cut and where.is_fully_replicated
    ):
      return where.mesh
  return None


def _shared(mesh: Mesh, parts: int, *, by_process: bool) -> Mesh | None:
  """A mesh of the same devices, each `parts` of which have a copy to share.

  None where the devices of a process cannot be grouped so: each device then
  gets a whole copy.

  Args:
    mesh: The devices.
    parts: Devices of a group; 1 for none.
    by_process: Whether groups lie in one process each, or as the mesh has them.
  """
  devices = list(mesh.devices.flat)
  counts = collections.Counter(d.process_index for d in devices)
  if parts == 1 or any(count % parts for count in counts.values()):
    return None
  if by_process:
    devices.sort(key=lambda d: d.process_index)
  groups = np.array(devices).reshape(-1, parts)
  return Mesh(groups, ("data", split.AXIS))


@functools.lru_cache(maxsize=4)
def _program(config: ModelConfig, mesh: Mesh | None, parts: int):
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
    made = jax.tree_util.tree_map_with_path(one, by_layer)
    return split.fit(config, made, parts)

  where = _everywhere(mesh)
  shared = mesh and _shared(mesh, parts, by_process=False)
  if shared is not None:
    at = functools.partial(NamedSharding, shared)
    where = jax.tree.map(at, split.specs(config, parts))
  return jax.jit(prepare, out_shardings=where)


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


def _by_process(found: Any) -> Any:
  """The same arrays, each process with all of them on its own devices."""
  mesh = _mesh_of(found)
  if mesh is None:
    return found
  within = _shared(mesh, split.size(mesh), by_process=True)
  if list(within.devices.flat) == list(mesh.devices.flat):
    return found
  move = lambda x: jax.device_put(x, NamedSharding(within, x.sharding.spec))
  return jax.tree.map(move, found)


def _picked(where: NamedSharding, x: jax.Array) -> jax.Array:
  """An array where its parts are wanted, taken from devices of this process."""
  plain = lambda index: tuple(
    part.indices(size) for part, size in zip(index, x.shape, strict=True)
  )
  held = collections.defaultdict(dict)
  for shard in x.addressable_shards:
    held[plain(shard.index)][shard.device] = shard.data
  parts = []
  for device, index in where.addressable_devices_indices_map(x.shape).items():
    found = held.get(plain(index))
    if found is None:
      assert x.is_fully_replicated  # By `_shared`.
      whole = x.addressable_data(0)
      found = {None: whole[index]}
    nearest = found.get(device, next(iter(found.values())))
    parts.append(jax.device_put(nearest, device))
  return jax.make_array_from_single_device_arrays(x.shape, where, parts)
