"""Rotary positions: how fast each pair of a head turns, and the turning.

Source: Su et al. 2021, arXiv:2104.09864.
"""

import math

import chex
import jax
import jax.numpy as jnp

from steppo_jax.models.config import FULL, ModelConfig, RopeScaling
from steppo_jax.ops import floats


def frequencies(config: ModelConfig, *, local: bool) -> chex.Array:
  """Radians per position of each half of a head, scaled: [D / 2] float32.

  Args:
    config: Sizes of the decoder.
    local: True for a layer with a window.

  Source of "llama3": the reference code of Llama 3.1 (`apply_scaling`); of
  "yarn": Peng et al. 2023, arXiv:2309.00071, section 3.2.
  """
  half = config.head_dim // 2
  theta, scaling = _base(config, local=local)
  found = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if scaling is None:
    return found
  if scaling.kind == "linear":
    return found / scaling.factor
  if scaling.kind == "factors":
    return found / jnp.asarray(scaling.factors, jnp.float32)
  if scaling.kind == "yarn":
    keep = _kept_by_yarn(theta, half, scaling)
    return found * (keep + (1 - keep) / scaling.factor)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  turns = scaling.original_context * found / (2 * math.pi)
  keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return found * (keep + (1 - keep) / scaling.factor)


def _base(
  config: ModelConfig, *, local: bool
) -> tuple[float, RopeScaling | None]:
  """The rotation of the layers with a window, or of the others."""
  if local and config.local_rope_theta is not None:
    return config.local_rope_theta, config.local_rope_scaling
  return config.rope_theta, config.rope_scaling


def _kept_by_yarn(theta: float, half: int, scaling: RopeScaling) -> chex.Array:
  """[D / 2] by frequency, 1 where it stays and 0 where it is divided."""
  # The frequency that turns so many times over the context, as a number.
  number = lambda turns: (
    half
    * math.log(scaling.original_context / (turns * 2 * math.pi))
    / math.log(theta)
  )
  first, last = number(scaling.beta_fast), number(scaling.beta_slow)
  if scaling.truncate:
    first, last = math.floor(first), math.ceil(last)
  # The released code bounds the last by the head's width, not by half of it.
  first, last = max(first, 0), min(last, 2 * half - 1)
  last += 0.001 * (first == last)
  ramp = (jnp.arange(half, dtype=jnp.float32) - first) / (last - first)
  return 1 - jnp.clip(ramp, 0.0, 1.0)


def rotate(
  x: chex.Array,
  positions: chex.Array,
  frequency: chex.Array,
  scale: chex.Array | float | None = None,
) -> chex.Array:
  """Rotates [B, T, H, D] by position; halves are paired as in Llama.

  Args:
    x: Queries or keys.
    positions: [B, T] int32.
    frequency: [D / 2] radians per position.
    scale: Multiplies what was rotated; None for 1.
  """
  half = x.shape[-1] // 2
  kind = floats.common(x)
  frequency = floats.along_last(frequency.astype(kind), x)
  angle = positions[..., None, None].astype(kind) * frequency
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  if scale is not None:
    scale = floats.constant(scale, kind)
    sin, cos = sin * scale, cos * scale
  # One product with each of two full-width factors: on CPU the backward pass of
  # two halves put side by side takes longer.
  cos = jnp.concatenate([cos, cos], axis=-1)
  sin = jnp.concatenate([-sin, sin], axis=-1)
  wide = x.astype(kind)
  turned = wide * cos + _rolled(x, half).astype(kind) * sin
  return turned.astype(x.dtype)


def _rolled(x: chex.Array, half: int) -> chex.Array:
  """`x` with the halves of its last axis exchanged."""
  if jax.default_backend() != "tpu":
    return jnp.roll(x, half, axis=-1)
  # A TPU moves numbers by a product with a permutation, which is as exact and
  # fits into what is around it: a layer takes three quarters of the time.
  swap = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=-1)
  return jnp.matmul(x, swap, precision=jax.lax.Precision.HIGHEST)


def of_layer(
  config: ModelConfig,
  window: chex.Numeric | None,
  rotates: chex.Numeric | None,
) -> tuple[chex.Array, chex.Numeric | None]:
  """Frequencies [D / 2] and scale of a layer, for `rotate`.

  Args:
    config: Sizes of the decoder.
    window: How many tokens the layer sees, which may be traced; None in a
      model without windows.
    rotates: Does the layer rotate? May be traced; None where every layer does.
  """
  scales = [
    1.0 if scaling is None else scaling.attention_factor
    for _, scaling in (_base(config, local=x) for x in (False, True))
  ]
  if window is None or config.local_rope_theta is None:
    frequency, scale = frequencies(config, local=False), scales[0]
  else:
    local = window < FULL
    frequency = jnp.where(
      local, frequencies(config, local=True), frequencies(config, local=False)
    )
    scale = scales[0]
    if scales[0] != scales[1]:
      scale = jnp.where(local, scales[1], scales[0])
  if rotates is not None:
    frequency = frequency * rotates
    scale = jnp.where(rotates, scale, 1.0)
  plain = isinstance(scale, float) and scale == 1.0
  return frequency, None if plain else scale
