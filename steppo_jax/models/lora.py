"""Low-rank adapters: a tree that has them trains them alone.

A matrix W [L, in, out] at ".../kernel" gets neighbours "lora_a" [L, in, r],
"lora_b" [L, r, out] and "lora_scale" [L], and the layer computes

    x W + s (x A) B,        s = alpha / r

Whether a policy is trained whole or through adapters is so a property of its
parameters: learner, sampler and checkpoints take either.

The product is that of x with one matrix, W + s A B, which the sampler gets too
(`product`, `merge`): a path of its own through A and B would write and read
every output of a layer once more.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from steppo_jax import trees
from steppo_jax.models.options import LoraConfig

_TRAINED = ("lora_a", "lora_b")
ADDED = (*_TRAINED, "lora_scale")


def _name(path: str) -> str:
  return path.rsplit("/", 1)[-1]


def add(
  params: Mapping[str, Any], config: LoraConfig, key: chex.PRNGKey
) -> dict[str, Any]:
  """Parameters with fresh adapters, which change nothing yet (B = 0).

  Args:
    params: A decoder's parameters.
    config: Which matrices, and how wide; rank 0 returns `params`.
    key: Draws A.

  Raises:
    ValueError: the parameters have adapters, or a pattern fits no matrix of a
      layer.
  """
  if not config.rank:
    return dict(params)
  if has(params):
    raise ValueError("the parameters have adapters already: merge them first")
  flat = trees.flatten(params)
  matrices = [path for path in flat if _name(path) == "kernel"]
  chosen = set()
  for pattern in config.targets:
    found = fnmatch.filter(matrices, pattern)
    if not found:
      raise ValueError(
        f"lora.targets: {pattern!r} fits none of {', '.join(matrices)}"
      )
    chosen |= set(found)
  for number, path in enumerate(sorted(chosen)):
    layers, wide, out = flat[path].shape
    before = path.removesuffix("kernel")
    draw = jax.random.normal(
      jax.random.fold_in(key, number), (layers, wide, config.rank)
    )
    flat[before + "lora_a"] = draw * wide**-0.5
    flat[before + "lora_b"] = jnp.zeros((layers, config.rank, out))
    flat[before + "lora_scale"] = _scale(layers, config)
  return trees.unflatten(flat)


def _scale(layers: int, config: LoraConfig) -> chex.Array:
  """[L] s = alpha / r."""
  return jnp.full((layers,), config.alpha / config.rank)


def with_scale(
  trained: Mapping[str, Any], config: LoraConfig
) -> dict[str, Any]:
  """What `split` says is trained, and its scales beside it.

  Args:
    trained: A and B by their paths.
    config: What they were made with.
  """
  ends = [path for path in trained if _name(path) == "lora_a"]
  scales = {
    path.removesuffix("lora_a") + "lora_scale": _scale(
      trained[path].shape[0], config
    )
    for path in ends
  }
  return dict(trained) | scales


def has(params: Any) -> bool:
  """Are there adapters? Any tree will do; those of other models have none."""
  paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(params) if p]
  return any(getattr(path[-1], "key", None) in ADDED for path in paths)


def split(params: Any) -> tuple[Any, dict[str, Any]]:
  """What is trained and what is not: adapters and the rest, or all and {}."""
  if not has(params):
    return params, {}
  flat = trees.flatten(params)
  trained = {k: v for k, v in flat.items() if _name(k) in _TRAINED}
  frozen = {k: v for k, v in flat.items() if k not in trained}
  return trained, frozen


def join(trained: Any, frozen: Mapping[str, Any]) -> Any:
  """Undoes `split`."""
  if not frozen:
    return trained
  return trees.unflatten(dict(sorted((trained | frozen).items())))


def off(params: Mapping[str, Any]) -> dict[str, Any]:
  """The tree without its adapters: the policy that they started from."""
  flat = trees.flatten(params)
  return trees.unflatten(
    {k: v for k, v in flat.items() if _name(k) not in ADDED}
  )


def merge(params: Mapping[str, Any]) -> dict[str, Any]:
  """The tree without adapters that computes what it computes with them."""
  flat = trees.flatten(params)
  merged = trees.flatten(off(params))
  for path in merged:
    before = path.removesuffix("kernel")
    if path == before or before + "lora_a" not in flat:
      continue
    added = [flat[before + name] for name in ADDED]
    merged[path] = _matrices(merged[path], *added)
  return trees.unflatten(merged)


def _matrices(kernel, a, b, scale):
  """W + s A B, [L, in, out], of the type of W.

  Added in the type of A, which is trained: float32 or more.
  """
  product = jnp.einsum("lir,lro,l->lio", a, b, scale)
  return (kernel.astype(product.dtype) + product).astype(kernel.dtype)


def _matrix(kernel, a, b, scale):
  """The same of one layer, [in, out].

  As a stack of one: of such products `remat="dots"` keeps none.
  """
  return _matrices(*(x[None] for x in (kernel, a, b, scale)))[0]


@jax.custom_jvp
def product(
  x: chex.Array,
  kernel: chex.Array,
  a: chex.Array,
  b: chex.Array,
  scale: chex.Array,
) -> chex.Array:
  """x (W + s A B) of rows x [M, in]: [M, out], of the type of x.

  The derivatives go through A and B one after the other, so that the gradient
  of a whole matrix is made for no adapter. A backward pass that computes
  nothing again (`remat="none"`) keeps W + s A B of each layer.
  """
  return x @ _matrix(kernel, a, b, scale).astype(x.dtype)


@functools.partial(product.defjvp, symbolic_zeros=True)
def _product_jvp(primals, tangents):
  x, kernel, a, b, scale = primals
  whole = _matrix(kernel, a, b, scale).astype(x.dtype)
  out = x @ whole
  narrow = lambda y: y.astype(x.dtype)
  parts = (
    lambda dx: dx @ whole,
    lambda dkernel: x @ narrow(dkernel),
    lambda da: (x @ narrow(da)) @ narrow(scale * b),
    lambda db: (x @ narrow(scale * a)) @ narrow(db),
    lambda dscale: (x @ narrow(a)) @ narrow(dscale * b),
  )
  found = [
    part(tangent)
    for part, tangent in zip(parts, tangents, strict=True)
    if not isinstance(tangent, SymbolicZero)
  ]
  return out, functools.reduce(jnp.add, found)
