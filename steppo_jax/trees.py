"""Leaves of a tree by name: what checkpoints and weight files store."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorstore

# Between the keys of nested parameters, in a name such as "layers/q/kernel".
_SEPARATOR = "/"


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns {path: leaf}; Orbax gets this flat form, whatever the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in leaves
  }


def describe(named: dict[str, Any]) -> dict[str, str]:
  """Returns {path: type and shape} as one text each."""
  return {
    name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named.items()
  }


def storable(named: dict[str, Any]) -> dict[str, Any]:
  """Returns the leaves as arrays that Orbax takes."""
  stored = {}
  for name, leaf in named.items():
    if isinstance(leaf, np.generic):  # Orbax refuses NumPy scalars.
      leaf = np.asarray(leaf)
    if not isinstance(leaf, jax.Array | np.ndarray):
      raise ValueError(
        f"{name} of the checkpoint is a {type(leaf).__name__}, not an array; "
        "save it under `host`"
      )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(
        f"{name} of the checkpoint is a typed PRNG key; save "
        "jax.random.key_data of it"
      )
    try:
      tensorstore.dtype(leaf.dtype.name)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"{name} of the checkpoint is of type {leaf.dtype}, which checkpoints "
        "cannot hold; save it as another type, such as uint8, or under `host`"
      ) from error
    stored[name] = leaf
  return stored


def filled(named: dict[str, Any]) -> dict[str, Any]:
  """The leaves that have any element: Orbax writes no others.

  Where there are none, one small array stands for them, since Orbax does not
  write a tree without leaves either.
  """
  found = {n: x for n, x in named.items() if math.prod(x.shape)}
  return found or {"nothing": np.zeros(1, np.int8)}


def empty(like: Any) -> Any:
  """An array without elements, of a type, shape and place."""
  if isinstance(like, np.ndarray):
    return np.empty(like.shape, like.dtype)
  return jax.device_put(np.empty(like.shape, like.dtype), like.sharding)


def target(leaf: Any) -> Any:
  """Returns what tells Orbax type, shape and place of one array."""
  if isinstance(leaf, np.ndarray | np.generic):
    return np.asarray(leaf)
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def check_same(path: pathlib.Path, saved: dict, wanted: dict) -> None:
  """Raises ValueError naming the arrays in which the two differ."""
  faults = _differences(saved, wanted, most=5)
  if faults:
    raise ValueError(
      f"the checkpoint {path} was written by a run of another configuration: "
      f"{faults}; restore it with the configuration it was trained with or "
      "choose another run folder"
    )


def _differences(
  have: Mapping[str, Any], need: Mapping[str, Any], *, most: int
) -> str:
  """What two dicts of descriptions differ in, "" where they are equal."""
  faults = [f"{name} is missing" for name in need if name not in have]
  faults += [f"{name} is not known" for name in have if name not in need]
  faults += [
    f"{name} is {have[name]} and should be {need[name]}"
    for name in need
    if name in have and have[name] != need[name]
  ]
  more = f" and {len(faults) - most} more" if len(faults) > most else ""
  return "; ".join(faults[:most]) + more


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {"a/b": leaf} of nested dicts, sorted by name.

  Raises:
    ValueError: a key is not a string, is empty or contains "/".
  """
  flat = {}

  def visit(tree, prefix):
    for key, value in tree.items():
      if not isinstance(key, str) or not key or _SEPARATOR in key:
        raise ValueError(
          f"the parameter key {key!r} under {prefix!r} must be a non-empty "
          f"string without {_SEPARATOR!r}"
        )
      if isinstance(value, Mapping):
        visit(value, prefix + key + _SEPARATOR)
      else:
        flat[prefix + key] = value

  visit(params, "")
  return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dicts of {"a/b": leaf}."""
  params: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split(_SEPARATOR)
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return params


def check_like(params: Mapping[str, Any], like: Mapping[str, Any]) -> None:
  """Checks that parameters have the names and shapes that a model needs.

  Args:
    params: nested dicts of arrays, as loaded.
    like: nested dicts of arrays or `jax.ShapeDtypeStruct`, as the model's
      `init` gives them. Types are not compared: storage may be narrower.

  Raises:
    ValueError: names missing, names that are not known, or other shapes.
  """
  shapes = lambda tree: {n: list(x.shape) for n, x in flatten(tree).items()}
  faults = _differences(shapes(params), shapes(like), most=8)
  if faults:
    raise ValueError(
      f"the weights are of another model: {faults}; give the model "
      "configuration that the weights were made with"
    )
