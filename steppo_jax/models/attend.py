"""Which attention runs here: blocks in XLA or a Pallas kernel."""

import functools
from collections.abc import Callable

import chex
import jax

from steppo_jax.models import mesh as mesh_lib
from steppo_jax.ops import attention, attention_pallas

# Queries, and keys, that the kernel for TPUs handles at once.
_LEAST = 512


def resolve(name: str) -> str:
  """Resolves "auto": "pallas" on a TPU, "xla" elsewhere; others stay.

  Raises:
    ValueError: the name is none of "auto", "xla" and "pallas".
  """
  if name not in ("auto", "xla", "pallas"):
    raise ValueError(f"attention={name!r} is none of auto, xla, pallas")
  if name != "auto":
    return name
  return "pallas" if jax.default_backend() == "tpu" else "xla"


def attend_rows(
  q: chex.Array,
  k: chex.Array,
  v: chex.Array,
  subtree_end: chex.Array,
  *,
  block: int,
  implementation: str,
  mesh: jax.sharding.Mesh | None,
) -> chex.Array:
  """Softmax attention under the interval mask, by the means of this device.

  Args:
    q: [B, T, H, D] queries.
    k: [B, T, KV, D] keys; H is a multiple of KV.
    v: [B, T, KV, D] values.
    subtree_end: [B, T] int32 in-row index one past the last descendant.
    block: Number of queries handled at once; "pallas" handles so many keys at
      once, too, and takes no fewer than 512, or all of a shorter row, as each
      pair of blocks costs it the same small time.
    implementation: "xla" for `attention.interval_attention`, "pallas" for
      `attention_pallas.interval_attention_tpu` (interpreted, slowly, where
      there is no TPU).
    mesh: Its axes "data" and "fsdp" split the rows and its axis "tensor" the
      heads, and each device attends to its own; None leaves that to the
      compiler, which refuses to split a kernel.

  Returns:
    [B, T, H, D]. A token that sees nothing gets a finite value of no meaning.

  Raises:
    AssertionError: the shapes do not fit each other.
    ValueError: there is no such implementation, or B is not a multiple of the
      devices.
  """
  on_tpu = jax.default_backend() == "tpu"
  if implementation == "xla":
    attend = functools.partial(attention.interval_attention, block=block)
  elif implementation == "pallas":
    size = -(-min(max(block, _LEAST), q.shape[1]) // 128) * 128
    attend = functools.partial(
      attention_pallas.interval_attention_tpu,
      block_q=size,
      block_k=size,
      interpret=not on_tpu,
    )
  else:
    raise ValueError(
      f"implementation={implementation!r} must be 'xla' or 'pallas'"
    )
  if mesh is not None:
    rows = jax.sharding.PartitionSpec(mesh_lib.row_axes(mesh))
    heads = jax.sharding.PartitionSpec(
      mesh_lib.row_axes(mesh), None, mesh_lib.head_axis(mesh, k.shape[2])
    )
    # JAX cannot check an interpreted kernel.
    check = implementation == "xla" or on_tpu
    attend = jax.shard_map(
      attend,
      mesh=mesh,
      in_specs=(heads, heads, heads, rows),
      out_specs=heads,
      check_vma=check,
    )
  return attend(q, k, v, subtree_end)


def over_rows(
  subtree_end: chex.Array,
  positions: chex.Array,
  *,
  block: int,
  implementation: str,
  mesh: jax.sharding.Mesh | None,
) -> Callable:
  """What a decoder attends with: attend(q, k, v, window=None).

  Layers with a window run `attention.window_attention`, as the kernel knows of
  no windows.

  Args:
    subtree_end: [B, T] int32 in-row index one past the last descendant.
    positions: [B, T] int32 depth of each token.
    block: Number of queries handled at once.
    implementation: See `attend_rows`.
    mesh: See `attend_rows`.
  """

  def attend(q, k, v, window=None):
    if window is not None:
      return attention.window_attention(
        q, k, v, subtree_end, positions, window, block=block
      )
    return attend_rows(
      q, k, v, subtree_end, block=block, implementation=implementation,
      mesh=mesh,
    )  # fmt: skip

  return attend
