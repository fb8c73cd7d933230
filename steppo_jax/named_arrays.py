"""The leaves of a tree by name, as checkpoints store them."""

import pathlib
from typing import Any

import jax
import numpy as np


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
    stored[name] = leaf
  return stored


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
  faults = [f"{name} is missing" for name in wanted if name not in saved]
  faults += [f"{name} is not known" for name in saved if name not in wanted]
  faults += [
    f"{name} is {saved[name]} and should be {wanted[name]}"
    for name in wanted
    if name in saved and saved[name] != wanted[name]
  ]
  if faults:
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise ValueError(
      f"the checkpoint {path} was written by a run of another configuration: "
      f"{'; '.join(faults[:5])}{more}; restore it with the configuration it "
      "was trained with or choose another run folder"
    )
