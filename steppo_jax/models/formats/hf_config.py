"""`config.json` of a Hugging Face checkpoint to sizes of the decoder and back.

Both spellings are read: that of transformers 5 (`rope_parameters`, nested by
layer type for Gemma 3) and the older one (`rope_theta`, `rope_scaling`).
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from steppo_jax import files
from steppo_jax.models.config import ModelConfig, RopeScaling

ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma3": "Gemma3ForCausalLM",
}
_TYPES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma3_text": "gemma3",
}
# Set to anything but these, a key means a computation that is not here.
_REFUSED = {
  "attention_bias": (False, None),
  "mlp_bias": (False, None),
  "attn_logit_softcapping": (None,),
  "use_bidirectional_attention": (False, None),
  "partial_rotary_factor": (1.0, None),
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_ABSENT = object()


def from_config(config: Mapping[str, Any] | str | os.PathLike) -> ModelConfig:
  """Sizes of the decoder from a Hugging Face configuration.

  Args:
    config: The dict, the path of `config.json`, or the folder that holds it.

  Raises:
    ValueError: no such file, no JSON object, an unknown `model_type`, a key
      that is missing, of another type or at odds with another, or a feature
      that the decoder does not have.
  """
  where = "config.json"
  if not isinstance(config, Mapping):
    where, config = str(config), _read(config)
  return _Reader(config, where).model()


def _read(path: str | os.PathLike) -> Mapping[str, Any]:
  path = pathlib.Path(path)
  path = path / "config.json" if path.is_dir() else path
  if not path.is_file():
    raise ValueError(f"no model configuration at {path}")
  return files.read_object(path)


class _Reader:
  """Reads keys of one configuration; every error names file and key."""

  def __init__(self, config: Mapping[str, Any], where: str):
    self._config, self._where = config, where
    kind = config.get("model_type", _ABSENT)
    if kind not in _TYPES:
      had = "is missing" if kind is _ABSENT else f"{kind!r} is not known"
      text = kind == "gemma3" and "; the text model inside is gemma3_text"
      raise ValueError(
        f"{where}: model_type {had}, one of {', '.join(_TYPES)}{text or ''}"
      )
    self._family = _TYPES[kind]

  def _fail(self, message: str):
    raise ValueError(f"{self._where}: {message}")

  def _number(self, key: str, default=_ABSENT, *, kind=int):
    value = self._config.get(key)
    value = default if value is None else value
    if value is _ABSENT:
      self._fail(f"{key} is missing")
    if value is None:
      return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))):
      self._fail(f"{key}={value!r} must be a number ({kind.__name__})")
    if not value > 0:
      self._fail(f"{key}={value!r} must be above 0")
    return kind(value)

  def model(self) -> ModelConfig:
    """The sizes."""
    for key, allowed in _REFUSED.items():
      value = self._config.get(key)
      if value not in allowed:
        self._fail(f"{key}={value!r} is not supported")
    width, heads = self._number("hidden_size"), self._number(
      "num_attention_heads"
    )  # fmt: skip
    if self._config.get("head_dim") is None and width % heads:
      self._fail(
        f"hidden_size={width} is not a multiple of num_attention_heads="
        f"{heads}, and head_dim is missing"
      )
    options = dict(
      vocab_size=self._number("vocab_size"),
      width=width,
      num_layers=self._number("num_hidden_layers"),
      num_heads=heads,
      num_kv_heads=self._number("num_key_value_heads", heads),
      head_dim=self._number("head_dim", width // heads),
      mlp_width=self._number("intermediate_size"),
      norm_eps=self._number("rms_norm_eps", kind=float),
      activation=self._activation(),
      tied=bool(self._config.get("tie_word_embeddings", self._gemma)),
      family=self._family,
      qkv_bias=self._family == "qwen2",
      qk_norm=self._family in ("qwen3", "gemma3"),
      softcap=self._number("final_logit_softcapping", None, kind=float),
    )
    options |= self._windows(options["num_layers"]) | self._rope()
    if self._gemma:
      scalar = self._number("query_pre_attn_scalar", 256, kind=float)
      options |= dict(
        sandwich_norms=True, norm_offset=1.0, embed_scale=width**0.5,
        query_scale=scalar**-0.5,
      )  # fmt: skip
    try:
      return ModelConfig(**options)
    except ValueError as error:
      raise ValueError(f"{self._where}: {error}") from error

  @property
  def _gemma(self) -> bool:
    return self._family == "gemma3"

  def _activation(self) -> str:
    key = "hidden_activation" if self._gemma else "hidden_act"
    default = "gelu_pytorch_tanh" if self._gemma else "silu"
    name = self._config.get(key, default)
    if name not in _ACTIVATIONS:
      self._fail(f"{key}={name!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]

  def _windows(self, layers: int) -> dict[str, Any]:
    slides = self._gemma or bool(self._config.get("use_sliding_window"))
    window = self._number("sliding_window", None) if slides else None
    kinds = self._config.get("layer_types")
    if kinds is None and self._gemma:
      pattern = self._number("sliding_window_pattern", 6)
      local = [bool((i + 1) % pattern) for i in range(layers)]
    elif kinds is None:
      first = self._config.get("max_window_layers", 0)
      local = [slides and i >= first for i in range(layers)]
    else:
      if len(kinds) != layers:
        self._fail(f"{len(kinds)} layer_types for num_hidden_layers={layers}")
      unknown = set(kinds) - {"sliding_attention", "full_attention"}
      if unknown:
        self._fail(f"layer_types {sorted(unknown)} are not supported")
      local = [kind == "sliding_attention" for kind in kinds]
    if any(local) and window is None:
      self._fail("layers slide, and sliding_window is missing")
    return {"windows": tuple(window if x else 0 for x in local)}

  def _rope(self) -> dict[str, Any]:
    found = self._config.get("rope_parameters")
    if found is None:
      found = dict(self._config.get("rope_scaling") or {})
      default = 1e6 if self._gemma else 1e4
      found["rope_theta"] = self._number("rope_theta", default, kind=float)
      local = self._number("rope_local_base_freq", 1e4, kind=float)
    elif self._gemma:
      local = found.get("sliding_attention", {}).get("rope_theta", 1e4)
      found = found.get("full_attention", {})
    theta = found.get("rope_theta", self._config.get("rope_theta"))
    if theta is None:
      self._fail("rope_theta is missing")
    options = {"rope_theta": float(theta), "rope_scaling": self._scaling(found)}
    if self._gemma:
      options["local_rope_theta"] = float(local)
    return options

  def _scaling(self, found: Mapping[str, Any]) -> RopeScaling | None:
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", None):
      return None
    names = {"linear": ("factor",)}
    names["llama3"] = (
      "factor", "low_freq_factor", "high_freq_factor",
      "original_max_position_embeddings",
    )  # fmt: skip
    if kind not in names:
      self._fail(f"rope_type={kind!r} is none of default, linear, llama3")
    missing = [name for name in names[kind] if name not in found]
    if missing:
      self._fail(f"rope_type={kind!r} misses {', '.join(missing)}")
    try:
      return RopeScaling(kind, *(found[name] for name in names[kind]))
    except (TypeError, ValueError) as error:
      raise ValueError(f"{self._where}: {error}") from error


def to_config(model: ModelConfig) -> dict[str, Any]:
  """A Hugging Face configuration that `from_config` reads back.

  `compute` and `remat` are no part of a checkpoint and stay behind.
  """
  kinds = {v: k for k, v in _TYPES.items()}
  gemma = model.family == "gemma3"
  activation = {v: k for k, v in _ACTIVATIONS.items()}[model.activation]
  config = {
    "model_type": kinds[model.family],
    "architectures": [ARCHITECTURES[model.family]],
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "num_hidden_layers": model.num_layers,
    "num_attention_heads": model.num_heads,
    "num_key_value_heads": model.num_kv_heads,
    "head_dim": model.head_dim,
    "intermediate_size": model.mlp_width,
    "rms_norm_eps": model.norm_eps,
    "hidden_activation" if gemma else "hidden_act": activation,
    "tie_word_embeddings": model.tied,
    "final_logit_softcapping": model.softcap,
    "rope_parameters": _rope_parameters(model),
  }
  if model.windows:
    sizes = {w for w in model.windows if w}
    if len(sizes) > 1:
      raise ValueError(f"windows of several sizes {sorted(sizes)}")
    config["sliding_window"] = sizes.pop()
    config["layer_types"] = [
      "sliding_attention" if w else "full_attention" for w in model.windows
    ]
    config["use_sliding_window"] = True
  elif gemma:
    config["layer_types"] = ["full_attention"] * model.num_layers
  if gemma:
    config["query_pre_attn_scalar"] = round(model.query_scale**-2, 6)
  return config


def _rope_parameters(model: ModelConfig) -> dict[str, Any]:
  rope: dict[str, Any] = {
    "rope_type": "default", "rope_theta": model.rope_theta
  }  # fmt: skip
  if model.rope_scaling is not None:
    scaling = model.rope_scaling
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
      rope |= {
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
      }
  if model.family != "gemma3":
    return rope
  local = {"rope_type": "default", "rope_theta": model.local_rope_theta}
  return {"full_attention": rope, "sliding_attention": local}
