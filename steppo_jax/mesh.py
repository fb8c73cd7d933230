"""Devices and shardings."""

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
