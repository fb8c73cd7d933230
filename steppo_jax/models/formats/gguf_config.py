"""Sizes of the decoder from what a GGUF file says of itself.

A key that is absent means what llama.cpp takes in its place, and a key that
would change the computation and is not read here is refused by name.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steppo_jax.models.config import ModelConfig, RopeScaling
from steppo_jax.models.formats import gguf_reader, hf_config

# general.architecture -> model_type of config.json. Mistral is a llama there,
# and OLMo 3 an olmo2 with windows.
_TYPES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma3": "gemma3_text",
  "smollm3": "smollm3",
  "olmo2": "olmo2",
}
# Keys behind the architecture's name. The first are sizes, by the names that
# config.json has for them.
_SIZES = {
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_READ = {
  *_SIZES, "attention.head_count_kv", "attention.key_length",
  "attention.value_length", "attention.sliding_window", "attention.scale",
  "attention.sliding_window_pattern", "rope.dimension_count",
  "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear",
  "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
  "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast",
  "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
  "rope.scaling.yarn_attn_factor",
}  # fmt: skip
# They change nothing that is computed, or only say what tensors show.
_HARMLESS = {
  "context_length", "vocab_size", "rope.scaling.finetuned",
  "tensor_data_layout", "attention.layer_norm_epsilon",
}  # fmt: skip
# The number of layers by which llama.cpp knows Gemma 3 27B.
_GEMMA_27B = 62


class _Keys:
  """The keys of one architecture; errors name them in full."""

  def __init__(self, reader, kind: str):
    self._value = functools.partial(gguf_reader.value, reader)
    self.kind = kind
    self.names = [
      name.removeprefix(f"{kind}.")
      for name in reader.fields
      if name.startswith(f"{kind}.")
    ]

  def fail(self, key: str, why: str):
    raise ValueError(f"{self.kind}.{key}={self.get(key)!r} {why}")

  def get(self, key: str, default: Any = None) -> Any:
    """A value; what was written as float32 is the shortest decimal."""
    found = self._value(f"{self.kind}.{key}", default)
    if isinstance(found, float):
      return float(str(np.float32(found)))
    return found

  def one(self, key: str, default: Any = None) -> Any:
    """A number, which may be given for each layer if it is always the same."""
    found = self.get(key, default)
    if not isinstance(found, (list, tuple)):
      return found
    if len(set(found)) != 1:
      self.fail(key, "differs by layer, which the decoder does not have")
    return found[0]

  def only(self, key: str, *allowed: Any):
    """Raises unless the key is absent or one of these."""
    if self.get(key) not in (None, *allowed):
      self.fail(key, f"is not read: only {allowed[0]!r} is")


def read(
  reader, shapes: Mapping[str, Any], factors: tuple[float, ...] | None
) -> ModelConfig:
  """The sizes of an open file.

  Args:
    reader: The file.
    shapes: Its tensors.
    factors: What the tensor rope_freqs.weight has: a number for each
      frequency, by which it is divided; None where there is none.

  Raises:
    ValueError: an architecture, a key or a value that is not read; it is named.
  """
  kind = gguf_reader.value(reader, "general.architecture")
  if kind not in _TYPES:
    raise ValueError(
      f"general.architecture={kind!r} is none of {', '.join(_TYPES)}"
    )
  keys = _Keys(reader, kind)
  config = _sizes(keys)
  _refuse(keys, config["head_dim"])
  embed = shapes.get("token_embd.weight")
  config |= {
    "model_type": _TYPES[kind],
    "vocab_size": embed.shape[0] if embed is not None else None,
    "tie_word_embeddings": "output.weight" not in shapes,
  }
  windows = _windows(keys, config)
  config |= windows
  scaling, theta = _scaling(keys), keys.get("rope.freq_base", 1e4)
  if kind == "gemma3" or config["model_type"] == "olmo3":
    # Layers with a window are never scaled.
    swa = keys.get("rope.freq_base_swa", 1e4 if kind == "gemma3" else theta)
    config["rope_parameters"] = {
      "full_attention": {"rope_theta": theta},
      "sliding_attention": {"rope_theta": swa},
    }
  else:
    config["rope_parameters"] = {"rope_theta": theta}
  if kind == "gemma3":
    config["final_logit_softcapping"] = (
      keys.get("final_logit_softcapping") or None
    )
  model = hf_config.from_config(config)
  if factors is not None:
    if scaling is not None:
      raise ValueError("rope_freqs.weight beside rope.scaling is not read")
    if set(factors) != {1.0}:
      scaling = RopeScaling("factors", factors=factors)
  return dataclasses.replace(
    model, rope_scaling=scaling, query_scale=_query_scale(keys, model)
  )


def _sizes(keys: _Keys) -> dict[str, Any]:
  config = {theirs: keys.one(ours) for ours, theirs in _SIZES.items()}
  for ours, theirs in _SIZES.items():
    if config[theirs] is None:
      raise ValueError(f"{keys.kind}.{ours} ({theirs}) is missing")
  heads = config["num_attention_heads"]
  config["num_key_value_heads"] = keys.one("attention.head_count_kv", heads)
  config["head_dim"] = keys.get(
    "attention.key_length", config["hidden_size"] // heads
  )
  return config


def _refuse(keys: _Keys, head_dim: int):
  known = _READ | _HARMLESS
  if keys.kind == "gemma3":
    known.add("final_logit_softcapping")
  for key in keys.names:
    if key not in known and keys.get(key) not in (0, "", None, [], False):
      keys.fail(key, "is not read, and may change what is computed")
  keys.only("attention.value_length", head_dim)
  keys.only("rope.dimension_count", head_dim)
  keys.only("rope.scaling.yarn_attn_factor", 1.0)
  keys.only("rope.scaling.yarn_ext_factor", 1.0, -1.0)


def _windows(keys: _Keys, config: Mapping[str, Any]) -> dict[str, Any]:
  """Which layers slide, as config.json says it."""
  key, pattern = "attention.sliding_window", "attention.sliding_window_pattern"
  window, layers = keys.one(key), config["num_hidden_layers"]
  if not window or keys.kind not in ("gemma3", "olmo2"):
    context = keys.get("context_length")
    if window and (context is None or window < context):
      keys.fail(key, f"is not read for {keys.kind}")
    if keys.kind == "gemma3":
      return {"layer_types": ["full_attention"] * layers}
    return {}
  every = keys.get(pattern, {"gemma3": 6, "olmo2": 4}[keys.kind])
  if isinstance(every, (list, tuple)):
    local = [bool(x) for x in every]
  else:
    local = [not every or (i + 1) % every != 0 for i in range(layers)]
  kinds = ["sliding_attention" if x else "full_attention" for x in local]
  found = {"sliding_window": window, "layer_types": kinds}
  return found | ({"model_type": "olmo3"} if keys.kind == "olmo2" else {})


def _scaling(keys: _Keys) -> RopeScaling | None:
  """Llama.cpp takes a factor without a type for linear."""
  kind = keys.get("rope.scaling.type", "linear")
  if kind not in ("none", "linear", "yarn"):
    keys.fail("rope.scaling.type", "is none of none, linear, yarn")
  factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear")
  factor = float(factor or 1.0)
  attention = keys.get("rope.scaling.attn_factor") or 1.0
  if kind != "yarn":
    if attention != 1.0:
      keys.fail("rope.scaling.attn_factor", f"is not read for {kind}")
    if kind == "none" or factor == 1.0:
      return None
    return RopeScaling("linear", factor)
  own = 1 + 0.1 * math.log(factor)
  if attention != 1.0:
    # Releases of llama.cpp differ in whether they multiply it with this.
    keys.fail(
      "rope.scaling.attn_factor",
      f"is not read: yarn with a factor of {factor} has {own:.6g} by itself",
    )
  context = keys.get("rope.scaling.original_context_length")
  context = context or keys.get("context_length")
  if not context:
    keys.fail("rope.scaling.original_context_length", "is needed by yarn")
  fast, slow = (
    keys.get(f"rope.scaling.yarn_beta_{x}") for x in ("fast", "slow")
  )
  return RopeScaling(
    "yarn", factor, original_context=context, attention_factor=own,
    beta_fast=32.0 if fast is None else fast,
    beta_slow=1.0 if slow is None else slow,
  )  # fmt: skip


def _query_scale(keys: _Keys, model: ModelConfig) -> float | None:
  """What multiplies scores; None for head_dim ** -0.5."""
  if scale := keys.get("attention.scale"):
    return float(scale)
  if keys.kind != "gemma3":
    return None
  if model.num_layers == _GEMMA_27B:
    return (model.width / model.num_heads) ** -0.5
  return model.head_dim**-0.5
