"""Parameters in safetensors files, with the facts of what made them."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

_SEPARATOR = "/"


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


def save_params(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  metadata: Mapping[str, str],
  *,
  dtype: Any = None,
) -> None:
  """Writes parameters; the file appears whole or not at all.

  Args:
    path: the .safetensors file.
    params: nested dicts of arrays.
    metadata: facts as strings: model configuration as JSON, tokenizer digest,
      command, seed, numbers reached.
    dtype: type that floating-point arrays are stored as, such as
      `jax.numpy.bfloat16`; None stores them as they are.

  Raises:
    ValueError: a name or a fact is not a string, or a number is too large for
      `dtype`.
  """
  path = pathlib.Path(path)
  for key, value in metadata.items():
    if not isinstance(key, str) or not isinstance(value, str):
      raise ValueError(f"metadata {key!r} must be a string, it is {value!r}")
  arrays = {}
  for name, leaf in flatten(params).items():
    array = np.asarray(leaf)
    if dtype is not None and jax.dtypes.issubdtype(array.dtype, np.floating):
      with np.errstate(over="ignore"):  # Reported just below, by name.
        smaller = array.astype(dtype)
      if np.isfinite(array).all() and not np.isfinite(smaller).all():
        raise ValueError(
          f"{name} overflows as {np.dtype(dtype).name}; choose a wider dtype"
        )
      array = smaller
    arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(path.name + ".tmp")
  safetensors.numpy.save_file(arrays, new, metadata=dict(metadata))
  os.replace(new, path)


def load_params(
  path: str | os.PathLike, *, dtype: Any = None
) -> tuple[dict[str, Any], dict[str, str]]:
  """Reads parameters and their facts.

  Args:
    path: a .safetensors file.
    dtype: type that floating-point arrays are returned as; None returns them
      as they are stored.

  Returns:
    Nested dicts of NumPy arrays, and the metadata.

  Raises:
    ValueError: the file is missing, cut short or not safetensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"no weights at {path}; give a .safetensors file")
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = dict(file.metadata() or {})
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} ({path.stat().st_size} bytes) is cut short or is not a "
      f"safetensors file ({error}); copy it again or make it again"
    ) from error
  if dtype is not None:
    flat = {
      name: array.astype(dtype)
      if jax.dtypes.issubdtype(array.dtype, np.floating)
      else array
      for name, array in flat.items()
    }
  return unflatten(flat), metadata


def check_like(params: Mapping[str, Any], like: Mapping[str, Any]) -> None:
  """Checks that parameters have the names and shapes that a model needs.

  Args:
    params: nested dicts of arrays, as loaded.
    like: nested dicts of arrays or `jax.ShapeDtypeStruct`, as the model's
      `init` gives them. Types are not compared: storage may be narrower.

  Raises:
    ValueError: names missing, names that are not known, or other shapes.
  """
  have, need = flatten(params), flatten(like)
  faults = [
    *(f"{name} is missing" for name in need if name not in have),
    *(f"{name} is not known" for name in have if name not in need),
    *(
      f"{name} is {list(have[name].shape)} and should be "
      f"{list(need[name].shape)}"
      for name in need
      if name in have and tuple(have[name].shape) != tuple(need[name].shape)
    ),
  ]
  if faults:
    more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
    raise ValueError(
      f"the weights are of another model: {'; '.join(faults[:8])}{more}; give "
      "the model configuration that the weights were made with"
    )
