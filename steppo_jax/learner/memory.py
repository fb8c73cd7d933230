"""What an update may hold: which layers are computed again, and how to split.

The compiler says what a program holds, and a device what it has free. Where a
device does not say, as a CPU, nothing is chosen: the model's own setting stays.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from steppo_jax.models import mesh as mesh_lib

# From the fastest to the one that holds least; see `ModelConfig.remat`.
REMATS = ("none", "dots", "full")
# Of the bytes that are free, as neither program nor allocator is exact.
_SHARE = 0.92


def free(mesh: jax.sharding.Mesh) -> int | None:
  """Bytes that the fullest device has left; None if devices do not say.

  All processes call it together, and hear the same.
  """
  here = jax.process_index()
  found = [
    d.memory_stats() for d in mesh.devices.flat if d.process_index == here
  ]
  if not found or not all(x and "bytes_limit" in x for x in found):
    return None
  left = min(x["bytes_limit"] - x.get("bytes_in_use", 0) for x in found)
  if jax.process_count() > 1:
    # In MiB, as numbers on devices have 32 bits.
    every = multihost_utils.process_allgather(np.int32(left >> 20))
    left = int(every.min()) << 20
  return left


def needed(compiled: jax.stages.Compiled) -> int:
  """Bytes that a program takes beside its arguments, which are there already.

  Arguments that are donated are written over, and cost nothing twice.
  """
  found = compiled.memory_analysis()
  return (
    found.temp_size_in_bytes
    + found.generated_code_size_in_bytes
    + max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)
  )


def choose(
  compiled: Callable[[str], jax.stages.Compiled], available: int
) -> tuple[str, jax.stages.Compiled]:
  """The least recomputation that fits, and the update compiled with it.

  Each is compiled until one fits, beginning with the fastest. The last is taken
  whatever it needs: nothing holds less.

  Args:
    compiled: Compiles the update for one of `REMATS`.
    available: Bytes that a device has left.
  """
  for remat in REMATS[:-1]:
    try:
      found = compiled(remat)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      continue
    if needed(found) <= _SHARE * available:
      return remat, found
  return REMATS[-1], compiled(REMATS[-1])


def whole(tree: Any) -> int:
  """Bytes of a tree of arrays, or of their shapes, that is not split."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def warn_of_split(
  mesh: jax.sharding.Mesh, state: Any, program: int, available: int
) -> None:
  """Warns where `mesh.fsdp` splits a model that every device could hold whole.

  Splitting costs a gather of every layer in every pass. Counted for a whole
  copy are the state, and the program as it is with the gradients whole.

  Args:
    mesh: The devices.
    state: The learner's state, or its shapes.
    program: Bytes that the update takes beside its arguments; see `needed`.
    available: Bytes that a device has left, the state being there.
  """
  fsdp = mesh.shape.get("fsdp", 1)
  if fsdp == 1:
    return
  placed = jax.tree.map(
    lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize,
    state, mesh_lib.placements(mesh, state),
  )  # fmt: skip
  more = whole(state) - sum(jax.tree.leaves(placed))
  gradients = whole(state.policy)
  if more + gradients + program <= _SHARE * available:
    warnings.warn(
      f"mesh.fsdp={fsdp} splits a state of {whole(state) / 2**30:.1f} GiB that "
      f"each device has room for ({available / 2**30:.1f} GiB are free): "
      "without it, each holds a copy and nothing is gathered, which is faster",
      stacklevel=3,
    )
