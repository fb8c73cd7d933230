"""Checkpoints in one GGUF file, quantised or not, read through `gguf`."""

import collections
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import trees
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import gguf_config, gguf_reader, names, placing

_TYPES = (
  "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K",
  "Q6_K",
)  # fmt: skip
# By which number Llama 3's rotation divides each frequency.
_FACTORS = "rope_freqs.weight"
# Whose rotation llama.cpp divides so.
_WITH_FACTORS = ("llama", "smollm3")


class _File:
  """The tensors of an open file, dequantised row by row as they are read."""

  def __init__(self, reader):
    self._tensors = {t.name: t for t in reader.tensors}

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    odd = {
      name: tensor.tensor_type.name
      for name, tensor in self._tensors.items()
      if tensor.tensor_type.name not in _TYPES
    }
    if odd:
      raise ValueError(f"{odd} are none of {', '.join(_TYPES)}")
    return {
      # GGUF has the last axis first.
      name: jax.ShapeDtypeStruct(
        tuple(int(n) for n in tensor.shape[::-1]), jnp.float32
      )
      for name, tensor in self._tensors.items()
    }

  def dtype(self, name: str) -> Any:
    return jnp.float32

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    from gguf import quants

    tensor = self._tensors[name]
    rows = np.asarray(tensor.data[index[0]])
    found = quants.dequantize(rows, tensor.tensor_type)
    return found.astype(np.float32, copy=False)[(slice(None), *index[1:])]


def _model(reader, path: pathlib.Path, file: _File) -> ModelConfig:
  """Sizes from the metadata and the tensors."""
  try:
    shapes, factors = file.shapes(), None
    if _FACTORS in shapes and _architecture(reader) in _WITH_FACTORS:
      factors = tuple(float(x) for x in file.read(_FACTORS, (slice(None),)))
    return gguf_config.read(reader, shapes, factors)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def _architecture(reader) -> str | None:
  return gguf_reader.value(reader, "general.architecture")


class Facts(NamedTuple):
  """What a file says of itself.

  Attributes:
    model: Sizes of the decoder.
    types: Tensors by quantisation.
    context: Most tokens that the model was made for, None if not said.
  """

  model: ModelConfig
  types: Mapping[str, int]
  context: int | None


def describe(path: str | os.PathLike) -> Facts:
  """Sizes and types, without a tensor being read.

  Raises:
    ValueError: see `load`; tensors are not compared with the sizes.
    RuntimeError: the package gguf is missing.
  """
  path = pathlib.Path(path)
  reader = gguf_reader.open_reader(path)
  model = _model(reader, path, _File(reader))
  types = collections.Counter(t.tensor_type.name for t in reader.tensors)
  kind = _architecture(reader)
  context = gguf_reader.value(reader, f"{kind}.context_length")
  return Facts(model, types, context)


def load(
  path: str | os.PathLike,
  *,
  placement: placing.Placement | None = None,
  dtype: Any = jnp.float32,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Reads a GGUF file onto the devices that need its parts, dequantised.

  Llama's queries and keys are interleaved there for another rotation, and the
  norms of Gemma hold their offset; both are undone.

  Args:
    path: The file.
    placement: Where each parameter goes, by path and shape; None for the first
      device.
    dtype: Of the parameters.
    progress: Called with (arrays done, arrays in all) after each.

  Returns:
    Sizes of the decoder and its parameters.

  Raises:
    ValueError: the file is missing, cut short, no GGUF, of an architecture or
      a quantisation that is not read, or tensors are missing, unknown or of
      other shapes, which are then listed.
    RuntimeError: the package gguf is missing.
  """
  path = pathlib.Path(path)
  reader = gguf_reader.open_reader(path)
  file = _File(reader)
  model = _model(reader, path, file)
  have = file.shapes()
  if _architecture(reader) in _WITH_FACTORS:
    have.pop(_FACTORS, None)  # it is in the sizes
  rows = names.table(model, gguf=True)
  try:
    trees.check_like(have, names.expected(model, rows))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  params = placing.place(
    file, model, rows, placement=placement, dtype=dtype, progress=progress
  )
  gguf_reader.forget()
  return model, params
