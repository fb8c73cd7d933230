"""How devices split the slots, and share a model that is too large for one.

The axis "data" of the sampler's mesh splits the slots. The devices of its axis
"tensor", if it has one, share the weights, and the cache of the slots that they
sample in.

Each of T devices has a T-th of the query heads, of the inner width and of the
vocabulary, and key heads to match: a T-th of them, or the one that its query
heads read where there are fewer than T. A layer adds up twice over the axis,
behind attention and behind the MLP; tokens are looked up, and drawn, where
their rows of the table are.

Source of the split: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.sampler import draw

_log = logging.getLogger(__name__)

AXIS = "tensor"
# Fewest slots of a part. The devices of a CPU share its cores: more parts read
# the weights more often and compute nothing sooner, and a group of as many
# members reads its prompt once.
LEAST_SLOTS = {"cpu": 8}
LEAST_SLOTS_ELSEWHERE = 1
_ROWS = ("q", "k", "v", "gate", "up")
_COLUMNS = ("o", "down")
_TABLES = ("embed", "unembed")


def parts_of(
  num_slots: int, num_devices: int, shared_by: int, platform: str
) -> int:
  """Parts of equal length that the slots of a process are split into.

  As many as there are devices for, each with the fewest slots of a part or
  more. On a chip that is one slot, so that its memory and its speed are used;
  a group whose members lie on several devices reads its prompt on each.

  Args:
    num_slots: N, of one process.
    num_devices: Those of the process that may be used.
    shared_by: Devices that a part's slots have, among which the model is split.
    platform: Of the devices, as JAX names it.

  Raises:
    ValueError: there are not so many devices.
  """
  least = LEAST_SLOTS.get(platform, LEAST_SLOTS_ELSEWHERE)
  most = min(num_devices // shared_by, max(1, num_slots // least))
  if not most:
    raise ValueError(
      f"sampler.tensor={shared_by}, but there are {num_devices} devices to "
      "sample on"
    )
  return max(n for n in range(1, most + 1) if num_slots % n == 0)


def mesh_of(
  num_slots: int, devices: Sequence[jax.Device], shared_by: int = 1
) -> Mesh | None:
  """The devices that slots are split over: see `parts_of`.

  None for the first device of the process alone.

  Args:
    num_slots: N.
    devices: Those that may be used.
    shared_by: Devices that a part's slots have, among which the model is split.

  Raises:
    ValueError: there are not so many devices.
  """
  parts = parts_of(num_slots, len(devices), shared_by, devices[0].platform)
  axes = {"data": parts}
  if shared_by > 1:
    axes[AXIS] = shared_by
  elif parts == 1 and devices[0] == jax.local_devices()[0]:
    return None
  return jax.make_mesh(
    tuple(axes.values()), tuple(axes), devices=devices[: parts * shared_by],
    axis_types=(jax.sharding.AxisType.Auto,) * len(axes),
  )  # fmt: skip


@functools.cache  # Every engine of a process would say the same.
def warn_of_idle(
  num_slots: int, num_devices: int, shared_by: int, platform: str
) -> None:
  """Warns once of chips that no slot is given to; see `parts_of`.

  The devices of a CPU are no chips of their own: nothing lies idle there.
  """
  used = shared_by * parts_of(num_slots, num_devices, shared_by, platform)
  if platform == "cpu" or used == num_devices:
    return
  copies = num_devices // shared_by
  advice = f"take a multiple of {copies} for sampler.num_slots"
  if num_devices % shared_by:
    advice += ", and for sampler.tensor what divides the number of devices"
  _log.warning(
    "sampler.num_slots=%d of this process is sampled on %d of its %d devices: "
    "%s", num_slots, used, num_devices, advice,
  )  # fmt: skip


def placement(shared_by: int) -> Callable | None:
  """Where parameters are read to that devices will share; None for one device.

  (path, shape) -> sharding, of the first devices of the process. The sampler
  takes them from there (`hand_over.for_sampler`).

  Args:
    shared_by: `SamplerConfig.tensor`.

  Raises:
    ValueError: see `parts_of`.
  """
  if shared_by <= 1:  # Less is refused by the options.
    return None
  return mesh_lib.by_path(mesh_of(1, jax.local_devices(), shared_by))


def check(config: ModelConfig, parts: int) -> None:
  """Raises ValueError if a model cannot be split into so many parts."""
  kv = config.num_kv_heads
  for name, whole in (
    ("num_heads", config.num_heads), ("mlp_width", config.mlp_width)
  ):  # fmt: skip
    if whole % parts:
      raise ValueError(
        f"sampler.tensor={parts} does not divide the model's {name}={whole}"
      )
  if kv % parts and parts % kv:
    raise ValueError(
      f"sampler.tensor={parts} neither divides the model's "
      f"num_kv_heads={kv} nor is a multiple of it"
    )


def whole_cache(config: ModelConfig, parts: int) -> ModelConfig:
  """Sizes with the key heads of all parts, of which several may be equal."""
  heads = max(config.num_kv_heads, parts)
  return dataclasses.replace(config, num_kv_heads=heads)


def part(config: ModelConfig, parts: int) -> ModelConfig:
  """Sizes of what one device computes, with all of its rows of the table."""
  if parts == 1:
    return config
  return dataclasses.replace(
    config,
    num_heads=config.num_heads // parts,
    num_kv_heads=max(1, config.num_kv_heads // parts),
    mlp_width=config.mlp_width // parts,
    num_ids=None,
  )


def fit(config: ModelConfig, params: Any, parts: int) -> Any:
  """Parameters by layer that can be cut into parts.

  Key heads are repeated where there are fewer of them than parts, and tables
  end with rows of zeros, so that parts are whole blocks of `draw.tokens`.

  Args:
    config: Sizes of the decoder.
    params: See `transformer.by_layer`.
    parts: Devices that share the model.
  """
  if parts == 1:
    return params
  times = max(1, parts // config.num_kv_heads)

  def one(path, x):
    owner = _names(path)[-2]
    if owner in _TABLES:
      more = -x.shape[0] % (parts * draw.BLOCK)
      return jnp.pad(x, ((0, more), (0, 0)))
    joint = config.qk_norm_joint and owner == "k_norm"
    if times > 1 and (owner in ("k", "v") or joint):
      heads = x.reshape(config.num_kv_heads, config.head_dim, *x.shape[1:])
      return jnp.repeat(heads, times, axis=0).reshape(-1, *x.shape[1:])
    return x

  return jax.tree_util.tree_map_with_path(one, params)


def specs(config: ModelConfig, parts: int) -> Any:
  """Where parameters by layer lie, as a tree of PartitionSpec or one for all.

  Args:
    config: Sizes of the decoder.
    parts: Devices that share the model.
  """

  def one(path, x):
    owner, leaf = _names(path)[-2:]
    joint = config.qk_norm_joint and owner in ("q_norm", "k_norm")
    if owner in _ROWS or owner in _TABLES or joint:
      return PartitionSpec(AXIS, *[None] * (x.ndim - 1))
    if owner in _COLUMNS and leaf == transformer.TURNED:
      return PartitionSpec(None, AXIS)
    return PartitionSpec()

  if parts == 1:
    return PartitionSpec()
  shapes = jax.eval_shape(
    transformer.by_layer, transformer.abstract_params(config)
  )
  return jax.tree_util.tree_map_with_path(one, shapes)


def axis(parts: int) -> str | None:
  """The axis of devices that share a model; None if one has all of it."""
  return AXIS if parts > 1 else None


def size(mesh: Mesh | None) -> int:
  """Devices that share the model."""
  return 1 if mesh is None else mesh.shape.get(AXIS, 1)


def _names(path: tuple) -> list[str]:
  """The dict keys of a path of a tree."""
  return [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]


def logits(
  config: ModelConfig, params: Any, hidden: chex.Array, axis: str | None
) -> chex.Array:
  """`transformer.logits` of the rows of the table that this device has.

  Args:
    config: Sizes of the whole decoder.
    params: This device's part.
    hidden: [N, W].
    axis: None for all rows; rows that stand for no token have -inf otherwise.
  """
  if axis is None:
    return transformer.logits(config, params, hidden)
  every = dataclasses.replace(config, num_ids=None)
  found = transformer.logits(every, params, hidden)
  rows = found.shape[-1]
  number = jax.lax.axis_index(axis) * rows + jnp.arange(rows)
  real = number < (config.num_ids or config.vocab_size)
  return jnp.where(real, found, -jnp.inf)
