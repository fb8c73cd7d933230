"""Devices and shardings."""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from steppo_jax.models.options import MeshConfig


def make_mesh(
  num_devices: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh with one axis, "data", over the first devices.

  Args:
    num_devices: How many; None takes all.
    devices: Those to choose from; None for all that are.

  Raises:
    ValueError: more devices are asked for than there are.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices) if num_devices is None else num_devices
  if not 1 <= count <= len(devices):
    raise ValueError(
      f"num_devices={count}, but there are {len(devices)} devices to learn on"
    )
  return jax.make_mesh(
    (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count]
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, where: Any) -> Any:
  """Moves arrays to devices, also to those of several processes.

  Args:
    tree: Arrays that every process holds as a whole, or that are there.
    where: A sharding, or a tree of them as a prefix of `tree`.
  """

  def one(sharding, x):
    if isinstance(x, jax.Array) and x.sharding == sharding:
      return x
    if sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  is_leaf = lambda x: isinstance(x, jax.sharding.Sharding)
  return jax.tree.map(
    lambda s, part: jax.tree.map(functools.partial(one, s), part),
    where, tree, is_leaf=is_leaf,
  )  # fmt: skip


def copied(tree: Any, where: Any) -> Any:
  """Copies of arrays, which share no memory with them, on some devices.

  One array is copied after the other, so that devices hold little besides.

  Args:
    tree: See `put`.
    where: A tree of shardings like `tree`.
  """
  leaves, structure = jax.tree.flatten(tree)
  for i, place in enumerate(jax.tree.leaves(where)):
    # `put` leaves what is on a device there, and takes arrays of the host as
    # they are where the host is the device.
    leaves[i] = jax.block_until_ready(jnp.copy(put(leaves[i], place)))
  return jax.tree.unflatten(structure, leaves)


def move(tree: Any, where: Any) -> Any:
  """`put` of a tree that its owner gives up: devices hold no array twice.

  One array goes after the other, and is let go of once it is there. For that
  the dicts and lists of the tree are emptied. Arrays that are in place stay as
  they are.

  Args:
    tree: See `put`.
    where: A tree of shardings like `tree`.
  """
  leaves, structure = jax.tree.flatten(tree)
  _empty(tree)
  for i, place in enumerate(jax.tree.leaves(where)):
    mine = isinstance(leaves[i], jax.Array)
    leaves[i] = put(leaves[i], place)
    # An update writes over it, which it may not do with memory of NumPy's.
    leaves[i] = leaves[i] if mine else jnp.copy(leaves[i])
    jax.block_until_ready(leaves[i])
  return jax.tree.unflatten(structure, leaves)


def _empty(tree: Any) -> None:
  """Lets go of what the dicts and lists of a tree hold."""
  inside = tree
  if isinstance(tree, dict):
    inside = tree.values()
  elif dataclasses.is_dataclass(tree):
    inside = vars(tree).values()
  elif not isinstance(tree, list | tuple):
    return
  for x in inside:
    _empty(x)
  if isinstance(tree, dict | list):
    tree.clear()


def to_host(tree: Any) -> Any:
  """Whole arrays as NumPy; all processes call it together."""

  def one(x):
    if (
      isinstance(x, jax.Array)
      and not x.is_fully_addressable
      and not x.is_fully_replicated
    ):
      x = _joined(x.sharding.mesh)(x)
    # One after the other: a device may not hold all of them whole.
    return jax.device_get(x)

  return jax.tree.map(one, tree)


def meet(mesh: Mesh) -> None:
  """Lets the processes of a mesh speak once, while all are known to be there.

  On CPU they wait 30 s for each other when they first speak, and one of them
  may compile longer than that before its first update.
  """
  everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  to_host(put(np.zeros(mesh.size, np.float32), everywhere))


@functools.cache
def _joined(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Puts the parts of an array together on every device."""
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def by_row(mesh: Mesh, axis: int) -> NamedSharding:
  """Splits `axis` of an array over the devices that hold different rows."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, row_axes(mesh)))


def row_axes(mesh: Mesh) -> str | tuple[str, ...]:
  """The axes of a mesh whose devices hold different rows."""
  return ("data", "fsdp") if "fsdp" in mesh.shape else "data"


def row_parts(mesh: Mesh) -> int:
  """Number of devices that hold different rows."""
  return mesh.shape["data"] * mesh.shape.get("fsdp", 1)


def head_axis(mesh: Mesh, num_kv_heads: int) -> str | None:
  """The axis that splits heads, if the key heads can be split by it."""
  tensor = mesh.shape.get("tensor", 1)
  return "tensor" if tensor > 1 and num_kv_heads % tensor == 0 else None


def make_model_mesh(
  *, data: int, fsdp: int, tensor: int, devices: Any = None
) -> Mesh:
  """A mesh whose axes split rows, parameters, and heads and inner widths.

  Args:
    data: Devices that hold different rows and the same parameters.
    fsdp: Devices that hold different rows and different parts of parameters.
    tensor: Devices that compute different parts of every layer.
    devices: The devices, which need not be there; None for all that are.

  Raises:
    ValueError: the product is not the number of devices.
  """
  shape = (data, fsdp, tensor)
  devices = jax.devices() if devices is None else devices
  if math.prod(shape) != len(devices):
    raise ValueError(
      f"data={data} x fsdp={fsdp} x tensor={tensor} are not "
      f"{len(devices)} devices"
    )
  return jax.make_mesh(
    shape,
    ("data", "fsdp", "tensor"),
    axis_types=(AxisType.Auto,) * 3,
    devices=devices,
  )


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
  """Options for `jax.jit` of a program whose parameters lie on a mesh.

  Where "fsdp" splits parameters over TPUs, the compiler's default takes a
  product apart, into one with each device's part of the matrix, to exchange
  parts meanwhile: it then adds up or puts together the outputs, which takes as
  long as the product. With matrices gathered whole, which also goes on
  meanwhile, a layer of Qwen3-0.6B takes two thirds of the time (tpu/README.md).
  None elsewhere.
  """
  if mesh.shape.get("fsdp", 1) == 1 or mesh.devices.flat[0].platform != "tpu":
    return None
  return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


# The last two axes of each parameter, by the end of its path: Megatron's
# columns, then rows, so that a layer sums over "tensor" twice.
_SPLIT = {
  ("q", "k", "v", "gate", "up"): ("fsdp", "tensor"),
  ("o", "down"): ("tensor", "fsdp"),
  ("embed", "unembed"): ("tensor", "fsdp"),
}
# Adapters lie beside a kernel [in, out] and keep one of its axes each.
_SPLIT_LEAVES = {
  "kernel": lambda axes: axes,
  "embedding": lambda axes: axes,
  "lora_a": lambda axes: (axes[0], None),
  "lora_b": lambda axes: (None, axes[1]),
}


def by_path(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
  """Where each parameter goes on a mesh of `make_model_mesh`.

  Matrices are split over "fsdp" and "tensor", each axis where the number of
  devices divides it; vectors are on every device.

  Args:
    mesh: The devices.

  Returns:
    (path such as "layers/q/kernel", shape) -> sharding.
  """

  def placement(path: str, shape: tuple[int, ...]) -> NamedSharding:
    spec = [None] * len(shape)
    names = path.split("/")
    # An optimizer may keep less than a matrix under its name.
    for owners, axes in _SPLIT.items() if len(shape) > 1 else ():
      if names[-1] in _SPLIT_LEAVES and names[-2:-1] and names[-2] in owners:
        split = _SPLIT_LEAVES[names[-1]](axes)
        for at, axis in zip((-2, -1), split, strict=True):
          if axis in mesh.shape and shape[at] % mesh.shape[axis] == 0:
            spec[at] = axis
    return NamedSharding(mesh, PartitionSpec(*spec))

  return placement


def placements(mesh: Mesh, tree: Any) -> Any:
  """Where each array of a tree goes, by the path that its dict keys spell.

  Optimizer states hold arrays by the paths of the parameters, and go where
  those go. On a mesh without model axes everything is on every device.

  Args:
    mesh: The devices.
    tree: Arrays or their shapes, such as a learner's state.

  Returns:
    The same tree with a sharding for each array.
  """
  rule = by_path(mesh)

  def one(path, leaf):
    keys = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
    return rule("/".join(keys), leaf.shape)

  return jax.tree_util.tree_map_with_path(one, tree)


def shaped(mesh: Mesh, tree: Any) -> Any:
  """Shapes that know where their arrays would go; see `placements`."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    tree,
    placements(mesh, tree),
  )


def constrain(mesh: Mesh, tree: Any) -> Any:
  """Keeps traced arrays where `placements` puts them.

  A mesh without model axes leaves the compiler its choice.
  """
  if "fsdp" not in mesh.shape:
    return tree
  return jax.lax.with_sharding_constraint(tree, placements(mesh, tree))


def of_run(config: MeshConfig, num_devices: int | None) -> Mesh:
  """The devices of a run; the axis "data" takes what is left.

  Args:
    config: How many devices split the model, and how many are left to rollouts.
    num_devices: How many devices there are to be; None takes all that are left.

  Raises:
    ValueError: there are not so many devices, they do not divide, or they are
      not equally many of each process.
  """
  devices = _learner_devices(config)
  chosen = make_mesh(num_devices, devices)
  of_process = collections.Counter(d.process_index for d in chosen.devices.flat)
  shares = [of_process[i] for i in range(jax.process_count())]
  if len(set(shares)) > 1:
    raise ValueError(
      f"num_devices={num_devices} takes {shares} devices of the processes, "
      "which all need equally many: leave it out to take all devices"
    )
  split = config.fsdp * config.tensor
  if split == 1:
    return chosen
  count = len(devices) if num_devices is None else num_devices
  data, rest = divmod(count, split)
  if rest or not data:
    raise ValueError(
      f"mesh.fsdp={config.fsdp} x mesh.tensor={config.tensor} do not divide "
      f"{count} devices"
    )
  return make_model_mesh(
    data=data, fsdp=config.fsdp, tensor=config.tensor,
    devices=chosen.devices.flatten(),
  )  # fmt: skip


def rollout_devices(config: MeshConfig) -> list[jax.Device]:
  """The devices of this process that play: its last ones, or all it has.

  Raises:
    ValueError: none would be left for the learner.
  """
  devices, count = jax.local_devices(), config.rollout_devices
  if count >= len(devices):
    raise ValueError(
      f"mesh.rollout_devices={count} leaves the learner none of the "
      f"{len(devices)} devices of this process"
    )
  return devices[-count:] if count else devices


def _learner_devices(config: MeshConfig) -> list[jax.Device]:
  """The devices of all processes but those that are for rollouts alone."""
  if not config.rollout_devices:
    return jax.devices()
  rollout_devices(config)
  of = collections.defaultdict(list)
  for device in jax.devices():
    of[device.process_index].append(device)
  return [d for own in of.values() for d in own[: -config.rollout_devices]]
