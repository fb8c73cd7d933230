"""What each family calls its tensors: one table each, used to read and write.

A row is (our path, their name, how it is stored). Paths under "layers/" are one
array of all layers here and one tensor a layer there, with its number for "{}".
"""

from typing import Any, NamedTuple

import jax

from steppo_jax import trees
from steppo_jax.models import transformer
from steppo_jax.models.config import ModelConfig

# Stored as [out, in], which `Linear` has as [in, out].
TURNED = "turned"
AS_IS = "as it is"
# GGUF of Llama: as TURNED, and rows of a head interleaved for its rotation.
INTERLEAVED = "interleaved"
# GGUF of Gemma: the offset of the norm is part of the scale.
WITH_OFFSET = "with offset"


class TensorName(NamedTuple):
  """One line of a table; see the module."""

  ours: str
  theirs: str
  how: str


def _rows(prefix: str, how: str, **names: str) -> tuple[TensorName, ...]:
  """Rows of one layer's parameters; "q" is ours, `prefix` leads theirs."""
  leaf = {TURNED: "kernel", AS_IS: "scale", WITH_OFFSET: "scale"}
  leaf |= {INTERLEAVED: "kernel"}
  return tuple(
    TensorName(f"layers/{ours}/{leaf[how]}", f"{prefix}{theirs}.weight", how)
    for ours, theirs in names.items()
  )


_LAYER = "model.layers.{}."
_MATRICES = _rows(
  _LAYER, TURNED, q="self_attn.q_proj", k="self_attn.k_proj",
  v="self_attn.v_proj", o="self_attn.o_proj", gate="mlp.gate_proj",
  up="mlp.up_proj", down="mlp.down_proj",
)  # fmt: skip
_ENDS = (
  TensorName("embed/embedding", "model.embed_tokens.weight", AS_IS),
  TensorName("final_norm/scale", "model.norm.weight", AS_IS),
)
_NORMS = _rows(
  _LAYER, AS_IS, attention_norm="input_layernorm",
  mlp_norm="post_attention_layernorm",
)  # fmt: skip
_HEAD_NORMS = _rows(
  _LAYER, AS_IS, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"
)
_SANDWICH = _rows(
  _LAYER, AS_IS, attention_norm="input_layernorm",
  post_attention_norm="post_attention_layernorm",
  mlp_norm="pre_feedforward_layernorm",
  post_mlp_norm="post_feedforward_layernorm",
)  # fmt: skip
_POST_NORMS = _rows(
  _LAYER, AS_IS, post_attention_norm="post_attention_layernorm",
  post_mlp_norm="post_feedforward_layernorm",
)  # fmt: skip
_UNEMBED = TensorName("unembed/embedding", "lm_head.weight", AS_IS)

# Without biases, which `table` adds: families have them or not by size.
_LIKE_LLAMA = (*_ENDS, *_NORMS, *_MATRICES)
_LIKE_OLMO = (*_ENDS, *_POST_NORMS, *_MATRICES, *_HEAD_NORMS)
SAFETENSORS = {
  "llama": _LIKE_LLAMA,
  "mistral": _LIKE_LLAMA,
  "smollm3": _LIKE_LLAMA,
  "qwen2": _LIKE_LLAMA,
  "qwen3": (*_LIKE_LLAMA, *_HEAD_NORMS),
  "gemma3": (*_ENDS, *_SANDWICH, *_MATRICES, *_HEAD_NORMS),
  "olmo2": _LIKE_OLMO,
  "olmo3": _LIKE_OLMO,
}

_BLOCK = "blk.{}."
_GGUF_MATRICES = _rows(
  _BLOCK, TURNED, v="attn_v", o="attn_output", gate="ffn_gate", up="ffn_up",
  down="ffn_down",
)  # fmt: skip
_GGUF_PLAIN = _rows(_BLOCK, TURNED, q="attn_q", k="attn_k")
_GGUF_ROTATED = _rows(_BLOCK, INTERLEAVED, q="attn_q", k="attn_k")
_GGUF_EMBED = TensorName("embed/embedding", "token_embd.weight", AS_IS)
_GGUF_NORM = TensorName("final_norm/scale", "output_norm.weight", AS_IS)
_GGUF_NORMS = _rows(
  _BLOCK, AS_IS, attention_norm="attn_norm", mlp_norm="ffn_norm"
)
_GGUF_HEAD_NORMS = dict(q_norm="attn_q_norm", k_norm="attn_k_norm")
_GGUF_UNEMBED = TensorName("unembed/embedding", "output.weight", AS_IS)
_GGUF_COMMON = (_GGUF_EMBED, _GGUF_NORM, *_GGUF_NORMS, *_GGUF_MATRICES)

_GGUF_LIKE_LLAMA = (*_GGUF_COMMON, *_GGUF_ROTATED)
_GGUF_LIKE_OLMO = (
  _GGUF_EMBED, _GGUF_NORM, *_GGUF_MATRICES, *_GGUF_PLAIN,
  *_rows(
    _BLOCK, AS_IS, post_attention_norm="post_attention_norm",
    post_mlp_norm="post_ffw_norm", **_GGUF_HEAD_NORMS,
  ),
)  # fmt: skip
# Mistral is a Llama there, and OLMo 3 an OLMo 2 with windows.
GGUF = {
  "llama": _GGUF_LIKE_LLAMA,
  "mistral": _GGUF_LIKE_LLAMA,
  "smollm3": _GGUF_LIKE_LLAMA,
  "qwen2": (*_GGUF_COMMON, *_GGUF_PLAIN),
  "qwen3": (
    *_GGUF_COMMON,
    *_GGUF_PLAIN,
    *_rows(_BLOCK, AS_IS, **_GGUF_HEAD_NORMS),
  ),
  "olmo2": _GGUF_LIKE_OLMO,
  "olmo3": _GGUF_LIKE_OLMO,
  "gemma3": (
    _GGUF_EMBED,
    _GGUF_NORM._replace(how=WITH_OFFSET),
    *_GGUF_MATRICES,
    *_GGUF_PLAIN,
    *_rows(
      _BLOCK, WITH_OFFSET, attention_norm="attn_norm",
      post_attention_norm="post_attention_norm", mlp_norm="ffn_norm",
      post_mlp_norm="post_ffw_norm", **_GGUF_HEAD_NORMS,
    ),
  ),
}  # fmt: skip


def _with_biases(
  rows: tuple[TensorName, ...], model: ModelConfig
) -> tuple[TensorName, ...]:
  """The rows, and one for each bias beside its matrix."""
  biased = dict.fromkeys("qkv", model.qkv_bias) | {"o": model.o_bias}
  biased |= dict.fromkeys(("gate", "up", "down"), model.mlp_bias)
  found = []
  for row in rows:
    owner, _, leaf = row.ours.removeprefix("layers/").rpartition("/")
    if leaf == "kernel" and biased[owner]:
      theirs = row.theirs.removesuffix("weight") + "bias"
      if row.how == INTERLEAVED:
        raise ValueError(
          f"family={model.family!r} has no name for the bias of {owner!r} in "
          "GGUF, where its rows would be interleaved"
        )
      found.append(TensorName(f"layers/{owner}/bias", theirs, AS_IS))
  return (*rows, *found)


def table(model: ModelConfig, *, gguf: bool = False) -> tuple[TensorName, ...]:
  """Rows of a model: those of its family, its biases, "unembed" if it has one.

  Raises:
    ValueError: the model has not the parameters of its family, such as norms of
      heads in a Llama.
  """
  known = GGUF if gguf else SAFETENSORS
  if model.family not in known:
    raise ValueError(f"family={model.family!r} is none of {', '.join(known)}")
  rows = _with_biases(known[model.family], model)
  if not model.tied:
    rows = (*rows, _GGUF_UNEMBED if gguf else _UNEMBED)
  like = trees.flatten(transformer.abstract_params(model))
  odd = sorted({row.ours for row in rows} ^ set(like))
  if odd:
    raise ValueError(
      f"family={model.family!r} has no name for, or no such parameter as, "
      f"{', '.join(odd)}"
    )
  return rows


def expected(
  model: ModelConfig, rows: tuple[TensorName, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Every tensor of a checkpoint by name, in the shape it is stored in."""
  like = trees.flatten(transformer.abstract_params(model))
  found: dict[str, Any] = {}
  for row in rows:
    leaf = like[row.ours]
    layers = [None]
    shape = leaf.shape
    if row.ours.startswith("layers/"):
      layers, shape = range(model.num_layers), shape[1:]
    if row.how in (TURNED, INTERLEAVED):
      shape = shape[::-1]
    for layer in layers:
      name = row.theirs.format(layer)
      found[name] = jax.ShapeDtypeStruct(shape, leaf.dtype)
  return found
