"""Devices and shardings."""

import math
from collections.abc import Callable

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh with one axis, "data", over the first devices.

  Args:
    num_devices: How many; None takes all.

  Raises:
    ValueError: more devices are asked for than there are.
  """
  devices = jax.devices()
  count = len(devices) if num_devices is None else num_devices
  if not 1 <= count <= len(devices):
    raise ValueError(
      f"mesh.num_devices={count}, but there are {len(devices)} devices"
    )
  return jax.make_mesh(
    (count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count]
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh, axis: int) -> NamedSharding:
  """Splits `axis` of an array over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def make_model_mesh(*, data: int, fsdp: int, tensor: int) -> Mesh:
  """A mesh whose axes split rows, parameters, and heads and inner widths.

  Args:
    data: Devices that hold different rows and the same parameters.
    fsdp: Devices that hold different rows and different parts of parameters.
    tensor: Devices that compute different parts of every layer.

  Raises:
    ValueError: the product is not the number of devices.
  """
  shape = (data, fsdp, tensor)
  if math.prod(shape) != len(jax.devices()):
    raise ValueError(
      f"data={data} x fsdp={fsdp} x tensor={tensor} are not "
      f"{len(jax.devices())} devices"
    )
  return jax.make_mesh(
    shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
  )


# The last two axes of each parameter, by the end of its path: Megatron's
# columns, then rows, so that a layer sums over "tensor" twice.
_SPLIT = {
  ("q", "k", "v", "gate", "up"): ("fsdp", "tensor"),
  ("o", "down"): ("tensor", "fsdp"),
  ("embed", "unembed"): ("tensor", "fsdp"),
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
    for owners, axes in _SPLIT.items():
      if names[-1] in ("kernel", "embedding") and names[-2] in owners:
        for at, axis in zip((-2, -1), axes, strict=True):
          if shape[at] % mesh.shape[axis] == 0:
            spec[at] = axis
    return NamedSharding(mesh, PartitionSpec(*spec))

  return placement


def rows_of(mesh: Mesh) -> NamedSharding:
  """Splits the first axis of rows over "data" and "fsdp"."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
