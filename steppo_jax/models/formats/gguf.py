"""Checkpoints in one GGUF file, quantised or not, read through `gguf`."""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import trees
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import gguf_reader, hf_config, names, placing

_FAMILIES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma3": "gemma3_text",
}
_TYPES = (
  "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K",
  "Q6_K",
)  # fmt: skip
# GGUF key behind the architecture's name -> key of config.json.
_KEYS = {
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.key_length": "head_dim",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.sliding_window": "sliding_window",
  "rope.freq_base": "rope_theta",
  "rope.freq_base_swa": "rope_local_base_freq",
  "final_logit_softcapping": "final_logit_softcapping",
}
_OUTPUT = "output.weight"


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


def _model(reader, path: pathlib.Path, shapes) -> ModelConfig:
  """Sizes from the metadata, through the keys of config.json."""
  value = functools.partial(gguf_reader.value, reader)
  kind = value("general.architecture")
  if kind not in _FAMILIES:
    raise ValueError(
      f"{path}: general.architecture={kind!r} is none of {', '.join(_FAMILIES)}"
    )
  config = {theirs: value(f"{kind}.{ours}") for ours, theirs in _KEYS.items()}
  for key, number in config.items():
    # Written as float32: the shortest decimal is the one that was meant.
    if isinstance(number, float):
      config[key] = float(str(np.float32(number)))
  scaling = value(f"{kind}.rope.scaling.type")
  if scaling not in (None, "none"):
    factor = value(f"{kind}.rope.scaling.factor")
    config["rope_scaling"] = {"type": scaling, "factor": factor}
  embed = shapes.get("token_embd.weight")
  config |= {
    "model_type": _FAMILIES[kind],
    "vocab_size": embed.shape[0] if embed is not None else None,
    "tie_word_embeddings": _OUTPUT not in shapes,
    "use_sliding_window": False,
  }
  if kind == "gemma3":
    config["query_pre_attn_scalar"] = config["head_dim"]
  try:
    return hf_config.from_config(config)
  except ValueError as error:
    raise ValueError(f"{path}, read as {error}") from error


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
  file = _File(reader)
  try:
    shapes = file.shapes()
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  kind = gguf_reader.value(reader, "general.architecture")
  types = collections.Counter(t.tensor_type.name for t in reader.tensors)
  context = gguf_reader.value(reader, f"{kind}.context_length")
  return Facts(_model(reader, path, shapes), types, context)


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
  try:
    have = file.shapes()
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  if "rope_freqs.weight" in have:
    raise ValueError(
      f"{path}: the scaled rotation of rope_freqs.weight is not read from "
      "GGUF; take the checkpoint in safetensors"
    )
  model = _model(reader, path, have)
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
