"""Parameters in safetensors files, with the facts of what made them."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from steppo_jax import files, trees
from steppo_jax.models.formats import tensor_files


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
  for name, leaf in trees.flatten(params).items():
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
  with files.replacing(path) as new:
    safetensors.numpy.save_file(arrays, new, metadata=dict(metadata))


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
  with tensor_files.opened(path) as file:
    metadata = dict(file.metadata() or {})
    flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  if dtype is not None:
    flat = {
      name: array.astype(dtype)
      if jax.dtypes.issubdtype(array.dtype, np.floating)
      else array
      for name, array in flat.items()
    }
  return trees.unflatten(flat), metadata
