"""`config.json` of a Hugging Face checkpoint to sizes of the decoder and back.

What a file leaves out is what transformers 5.24 takes for its family. What it
says and the decoder cannot compute is refused by name.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from steppo_jax import files
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import hf_rope


@dataclasses.dataclass(frozen=True)
class _Family:
  """What a family is called, and what is meant where a key is absent.

  Attributes:
    model_type: Its name in `config.json`.
    architecture: The class of its models in transformers.
    heads: Default of num_attention_heads.
    vocabulary: Default of vocab_size.
    kv_heads: Default of num_key_value_heads; None for as many as heads.
    head_dim: Default; None for hidden_size / num_attention_heads.
    eps: Default of rms_norm_eps.
    theta: Default of rope_theta.
    tied: Default of tie_word_embeddings.
    window: Default of sliding_window.
    biases: Which of attention_bias and mlp_bias the family reads.
    fixed: Options of `ModelConfig` that all its models have.
  """

  model_type: str
  architecture: str
  heads: int
  vocabulary: int
  kv_heads: int | None = None
  head_dim: int | None = None
  eps: float = 1e-6
  theta: float = 1e4
  tied: bool = False
  window: int | None = None
  biases: tuple[str, ...] = ()
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_POST_NORMS = dict(
  qk_norm=True, qk_norm_joint=True, pre_norms=False, sandwich_norms=True
)
_FAMILIES = {
  "llama": _Family(
    "llama", "LlamaForCausalLM", 32, 32_000,
    biases=("attention_bias", "mlp_bias"),
  ),
  "mistral": _Family(
    "mistral", "MistralForCausalLM", 32, 32_000, kv_heads=8, window=4096
  ),
  "qwen2": _Family(
    "qwen2", "Qwen2ForCausalLM", 32, 151_936, kv_heads=32, window=4096,
    fixed=dict(qkv_bias=True),
  ),
  "qwen3": _Family(
    "qwen3", "Qwen3ForCausalLM", 32, 151_936, kv_heads=32, head_dim=128,
    window=4096, biases=("attention_bias",), fixed=dict(qk_norm=True),
  ),
  "gemma3": _Family(
    "gemma3_text", "Gemma3ForCausalLM", 8, 262_208, kv_heads=4, head_dim=256,
    theta=1e6, tied=True, window=4096, biases=("attention_bias",),
    fixed=dict(qk_norm=True, sandwich_norms=True, norm_offset=1.0),
  ),
  "smollm3": _Family(
    "smollm3", "SmolLM3ForCausalLM", 16, 128_256, kv_heads=4, theta=2e6,
    tied=True, biases=("attention_bias", "mlp_bias"),
  ),
  "olmo2": _Family(
    "olmo2", "Olmo2ForCausalLM", 32, 50_304, eps=1e-5,
    biases=("attention_bias",), fixed=_POST_NORMS,
  ),
  "olmo3": _Family(
    "olmo3", "Olmo3ForCausalLM", 32, 50_304, eps=1e-5, theta=5e5, window=4096,
    biases=("attention_bias",), fixed=_POST_NORMS,
  ),
}  # fmt: skip
_TYPES = {row.model_type: family for family, row in _FAMILIES.items()}
_LINEAR = (
  "it has layers of linear attention (gated delta net), whose state a row with "
  "branches would have to keep for each of them"
)
# Known, and why they are not here.
_UNREAD = {
  "gemma3": "the text model inside is gemma3_text",
  "gemma2": "it caps the scores of attention (attn_logit_softcapping)",
  "gemma4": "the text model inside is gemma4_text, which is not read either",
  "gemma4_text": (
    "it has layers of two head widths, shared keys and embeddings by layer"
  ),
  "phi3": "it stores queries, keys and values in one matrix (qkv_proj)",
  "granite": "it scales its residual stream and its logits",
  "qwen3_5": _LINEAR,
  "qwen3_5_text": _LINEAR,
  "qwen3_next": _LINEAR,
}
# Set to anything but these, a key means a computation that is not here.
_REFUSED = {
  "attn_logit_softcapping": (None,),
  "use_bidirectional_attention": (False, None),
  "partial_rotary_factor": (1, None),
  "per_layer_config": (None,),
}
_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
_WITHOUT_WINDOWS = ("llama", "olmo2")
_SLIDING, _FULL = "sliding_attention", "full_attention"
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
  try:
    return _Reader(config).model()
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def _read(path: str | os.PathLike) -> Mapping[str, Any]:
  path = pathlib.Path(path)
  path = path / "config.json" if path.is_dir() else path
  if not path.is_file():
    raise ValueError(f"no model configuration at {path}")
  return files.read_object(path)


class _Reader:
  """Reads keys of one configuration; every error names the key."""

  def __init__(self, config: Mapping[str, Any]):
    self._config = config
    kind = config.get("model_type", _ABSENT)
    if not isinstance(kind, str) or kind not in _TYPES:
      had = "is missing" if kind is _ABSENT else f"{kind!r} is not known"
      if isinstance(kind, str) and kind in _UNREAD:
        had = f"{kind!r} is not read: {_UNREAD[kind]}"
      raise ValueError(f"model_type {had}; one of {', '.join(_TYPES)}")
    self._family = _TYPES[kind]
    self._row = _FAMILIES[self._family]

  def _number(self, key: str, default=_ABSENT, *, kind=int):
    """A number above 0, or the default; null where the default is None."""
    value = self._config.get(key, default)
    if value is _ABSENT:
      raise ValueError(f"{key} is missing")
    if value is None and default is None:
      return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))):
      raise ValueError(f"{key}={value!r} must be a number ({kind.__name__})")
    if not value > 0:
      raise ValueError(f"{key}={value!r} must be above 0")
    return kind(value)

  def _flag(self, key: str, default: bool) -> bool:
    value = self._config.get(key, default)
    if not isinstance(value, bool):
      raise ValueError(f"{key}={value!r} must be true or false")
    return value

  def _list(self, key: str, layers: int) -> list | None:
    """One value a layer, or None where there are none."""
    value = self._config.get(key)
    if value is None:
      return None
    if not isinstance(value, (list, tuple)):
      raise ValueError(f"{key}={value!r} must be a list")
    if len(value) != layers:
      raise ValueError(f"{len(value)} {key} for num_hidden_layers={layers}")
    return list(value)

  def model(self) -> ModelConfig:
    """The sizes."""
    row = self._row
    self._refuse()
    width = self._number("hidden_size")
    heads = self._number("num_attention_heads", row.heads)
    # Null stands for as many as heads; an absent key has the family's number.
    kv_heads = row.kv_heads
    if self._config.get("num_key_value_heads", _ABSENT) is None:
      kv_heads = None
    kv_heads = self._number("num_key_value_heads", kv_heads) or heads
    if heads % kv_heads:
      raise ValueError(
        f"num_attention_heads={heads} is not a multiple of "
        f"num_key_value_heads={kv_heads}"
      )
    head_dim = self._number("head_dim", row.head_dim)
    if head_dim is None and width % heads:
      raise ValueError(
        f"hidden_size={width} is not a multiple of num_attention_heads="
        f"{heads}, and head_dim is missing"
      )
    layers = self._number("num_hidden_layers")
    attention_bias = self._bias("attention_bias")
    options = dict(
      vocab_size=self._number("vocab_size", row.vocabulary),
      width=width,
      num_layers=layers,
      num_heads=heads,
      num_kv_heads=kv_heads,
      head_dim=head_dim or width // heads,
      mlp_width=self._number("intermediate_size"),
      norm_eps=self._number("rms_norm_eps", row.eps, kind=float),
      activation=self._activation(),
      tied=self._flag("tie_word_embeddings", row.tied),
      family=self._family,
      qkv_bias=attention_bias,
      o_bias=attention_bias,
      mlp_bias=self._bias("mlp_bias"),
      unrotated=self._unrotated(layers),
    )
    options["windows"] = self._windows(layers, options["unrotated"])
    options |= row.fixed
    options |= hf_rope.read(self._config, self._family, theta=row.theta)
    if self._family == "gemma3":
      options |= dict(
        embed_scale=width**0.5,
        query_scale=self._number("query_pre_attn_scalar", 256, kind=float)
        ** -0.5,
        softcap=self._number("final_logit_softcapping", None, kind=float),
      )
    return ModelConfig(**options)

  def _refuse(self):
    for key, allowed in _REFUSED.items():
      value = self._config.get(key)
      if value not in allowed:
        raise ValueError(f"{key}={value!r} is not supported")

  def _bias(self, key: str) -> bool:
    if key in self._row.biases:
      return self._flag(key, False)
    if self._config.get(key):
      raise ValueError(
        f"{key}={self._config[key]!r} is not read for {self._row.model_type}"
      )
    return False

  def _activation(self) -> str:
    gemma = self._family == "gemma3"
    key = "hidden_activation" if gemma else "hidden_act"
    name = self._config.get(key, "gelu_pytorch_tanh" if gemma else "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
      raise ValueError(f"{key}={name!r} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]

  def _unrotated(self, layers: int) -> tuple[bool, ...]:
    if self._family != "smollm3":
      return ()
    # In spite of its name, the list has 1 where a layer rotates.
    rotates = self._list("no_rope_layers", layers)
    if rotates is None:
      every = self._number("no_rope_layer_interval", 4)
      rotates = [(i + 1) % every for i in range(layers)]
    return tuple(not x for x in rotates)

  def _windows(
    self, layers: int, unrotated: tuple[bool, ...]
  ) -> tuple[int, ...]:
    uses = self._config.get("use_sliding_window")
    if self._family in _WITHOUT_WINDOWS:
      window, local = None, [False] * layers
      if uses:
        raise ValueError(
          f"use_sliding_window={uses!r} is not read for {self._row.model_type}"
        )
    else:
      window, local = self._default_windows(layers, unrotated, bool(uses))
    kinds = self._list("layer_types", layers)
    if kinds is not None:
      unknown = sorted({str(x) for x in kinds} - {_SLIDING, _FULL})
      if unknown:
        raise ValueError(f"layer_types {unknown} are not supported")
      kinds = [kind == _SLIDING for kind in kinds]
      if kinds != local and self._family in (*_WITHOUT_WINDOWS, "mistral"):
        raise ValueError(
          f"layer_types are not read for {self._row.model_type}, and are not "
          "what its layers would be without them"
        )
      local = kinds
    if any(local) and self._family == "smollm3" and not uses:
      raise ValueError(
        f"layers slide by layer_types, and use_sliding_window={uses!r}"
      )
    if any(local) and window is None:
      raise ValueError("layers slide, and sliding_window is missing")
    return tuple(window if x else 0 for x in local)

  def _default_windows(
    self, layers: int, unrotated: tuple[bool, ...], uses: bool
  ) -> tuple[int | None, list[bool]]:
    """The window and which layers have it, where layer_types is absent."""
    if self._family in ("qwen2", "qwen3") and not uses:
      return None, [False] * layers
    window = self._row.window
    if "sliding_window" in self._config:  # null for none
      window = self._number("sliding_window", None)
    if self._family == "mistral":
      return window, [window is not None] * layers
    if self._family == "olmo3":
      return window, [bool((i + 1) % 4) for i in range(layers)]
    if self._family == "gemma3":
      pattern = self._number("sliding_window_pattern", 6)
      kept = self._config.get("_sliding_window_pattern", pattern)
      if kept != pattern and self._config.get("layer_types") is None:
        raise ValueError(
          f"_sliding_window_pattern={kept!r}, which transformers does not "
          f"read, and sliding_window_pattern={pattern}: write layer_types"
        )
      return window, [bool((i + 1) % pattern) for i in range(layers)]
    if self._family == "smollm3":
      has = uses and window is not None
      skips = unrotated or (False,) * layers
      return window, [has and skip for skip in skips]
    first = self._config.get("max_window_layers", 28)
    if not isinstance(first, int):
      raise ValueError(f"max_window_layers={first!r} must be a number (int)")
    return window, [window is not None and i >= first for i in range(layers)]


def to_config(model: ModelConfig) -> dict[str, Any]:
  """A Hugging Face configuration that `from_config` reads back.

  `compute` and `remat` are no part of a checkpoint and stay behind.

  Raises:
    ValueError: the family cannot say a choice of the model, which is named.
  """
  row = _FAMILIES[model.family]
  gemma = model.family == "gemma3"
  activation = {v: k for k, v in reversed(_ACTIVATIONS.items())}
  config = {
    "model_type": row.model_type,
    "architectures": [row.architecture],
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "num_hidden_layers": model.num_layers,
    "num_attention_heads": model.num_heads,
    "num_key_value_heads": model.num_kv_heads,
    "head_dim": model.head_dim,
    "intermediate_size": model.mlp_width,
    "rms_norm_eps": model.norm_eps,
    "hidden_activation" if gemma else "hidden_act": activation[
      model.activation
    ],
    "tie_word_embeddings": model.tied,
    "rope_parameters": hf_rope.write(model),
  }
  for key, value in (
    ("attention_bias", model.qkv_bias), ("mlp_bias", model.mlp_bias)
  ):  # fmt: skip
    if key in row.biases:
      config[key] = value
  config |= _spell_windows(model)
  if model.family == "smollm3":
    rotates = model.unrotated or (False,) * model.num_layers
    config["no_rope_layers"] = [int(not x) for x in rotates]
    # Transformers has one by default, which small vocabularies do not have.
    config["pad_token_id"] = None
  if gemma:
    config["final_logit_softcapping"] = model.softcap
    scalar = round((model.query_scale or model.head_dim**-0.5) ** -2, 6)
    config["query_pre_attn_scalar"] = (
      int(scalar) if scalar == int(scalar) else scalar
    )
  _check_read_back(model, config)
  return config


def _spell_windows(model: ModelConfig) -> dict[str, Any]:
  sizes = {w for w in model.windows if w}
  if len(sizes) > 1:
    raise ValueError(f"windows of several sizes {sorted(sizes)}")
  window = sizes.pop() if sizes else None
  if model.family == "mistral":
    return {"sliding_window": window}
  if model.family in _WITHOUT_WINDOWS:
    return {}
  windows = model.windows or (0,) * model.num_layers
  config: dict[str, Any] = {
    "layer_types": [_SLIDING if w else _FULL for w in windows]
  }
  if window is not None:
    config["sliding_window"] = window
  if model.family in ("qwen2", "qwen3", "smollm3"):
    config["use_sliding_window"] = window is not None
  return config


def _check_read_back(model: ModelConfig, config: Mapping[str, Any]):
  """Raises ValueError, with the names, where a file would lose a choice."""
  found = dataclasses.asdict(from_config(config))
  want = dataclasses.asdict(model)
  lost = []
  for name in found.keys() - {"compute", "remat"}:
    same = found[name] == want[name]
    if name in ("embed_scale", "query_scale") and found[name] and want[name]:
      same = math.isclose(found[name], want[name], rel_tol=1e-6)
    if not same:
      lost.append(f"{name}={want[name]!r}")
  if lost:
    raise ValueError(
      f"config.json of {config['model_type']} cannot say {', '.join(lost)}"
    )
