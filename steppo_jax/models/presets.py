"""Decoder sizes by name."""

from steppo_jax.models.config import ModelConfig, RopeScaling

_QWEN3 = dict(rope_theta=1e6, family="qwen3", qk_norm=True)


def _gemma3(*, width: int, layers: int, window: int) -> dict:
  """What the text models of Gemma 3 have in common."""
  return dict(
    family="gemma3", qk_norm=True, sandwich_norms=True, norm_offset=1.0,
    activation="gelu_tanh", rope_theta=1e6, local_rope_theta=1e4,
    embed_scale=width**0.5, query_scale=256**-0.5,
    # Every sixth layer sees everything.
    windows=tuple(window if (i + 1) % 6 else 0 for i in range(layers)),
  )  # fmt: skip


# Everything but the vocabulary, which belongs to the tokenizer.
PRESETS = {
  "nano": dict(
    width=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32,
    mlp_width=160,
  ),
  "micro": dict(
    width=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=24,
    mlp_width=256,
  ),
  "small": dict(
    width=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=32,
    mlp_width=320,
  ),
  # For measurements at the sizes of real models, without their weights.
  "base_5m": dict(
    width=256, num_layers=6, num_heads=8, num_kv_heads=4, head_dim=32,
    mlp_width=704,
  ),
  "base_20m": dict(
    width=512, num_layers=7, num_heads=8, num_kv_heads=4, head_dim=64,
    mlp_width=1408,
  ),
  "smollm2_135m": dict(
    width=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    mlp_width=1536, rope_theta=100_000.0, norm_eps=1e-5,
  ),
  "smollm3_3b": dict(
    width=2048, num_layers=36, num_heads=16, num_kv_heads=4, head_dim=128,
    mlp_width=11_008, rope_theta=5e6, family="smollm3",
    # Every fourth layer.
    unrotated=tuple(not (i + 1) % 4 for i in range(36)),
  ),
  "llama3_2_1b": dict(
    width=2048, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64,
    mlp_width=8192, rope_theta=500_000.0, norm_eps=1e-5,
    rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
  ),
  "qwen2_5_0_5b": dict(
    width=896, num_layers=24, num_heads=14, num_kv_heads=2, head_dim=64,
    mlp_width=4864, rope_theta=1e6, family="qwen2", qkv_bias=True,
  ),
  "qwen3_0_6b": dict(
    width=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
    mlp_width=3072, **_QWEN3,
  ),
  "qwen3_1_7b": dict(
    width=2048, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
    mlp_width=6144, **_QWEN3,
  ),
  "qwen3_4b": dict(
    width=2560, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128,
    mlp_width=9728, **_QWEN3,
  ),
  "gemma3_270m": dict(
    width=640, num_layers=18, num_heads=4, num_kv_heads=1, head_dim=256,
    mlp_width=2048, **_gemma3(width=640, layers=18, window=512),
  ),
  "gemma3_1b": dict(
    width=1152, num_layers=26, num_heads=4, num_kv_heads=1, head_dim=256,
    mlp_width=6912, **_gemma3(width=1152, layers=26, window=512),
  ),
}  # fmt: skip

# Of the released checkpoints, rows of padding included.
VOCABULARIES = {
  "smollm2_135m": 49_152,
  "smollm3_3b": 128_256,
  "llama3_2_1b": 128_256,
  "qwen2_5_0_5b": 151_936,
  "qwen3_0_6b": 151_936,
  "qwen3_1_7b": 151_936,
  "qwen3_4b": 151_936,
  "gemma3_270m": 262_144,
  "gemma3_1b": 262_144,
}


def get(name: str, vocab_size: int | None = None) -> ModelConfig:
  """The sizes called `name`.

  Args:
    name: A key of `PRESETS`.
    vocab_size: Number of token ids; None takes that of the released checkpoint
      (`VOCABULARIES`).

  Raises:
    ValueError: no preset has that name, or it has no vocabulary of its own.
  """
  if name not in PRESETS:
    raise ValueError(f"unknown model {name!r}; one of {', '.join(PRESETS)}")
  if vocab_size is None and name not in VOCABULARIES:
    raise ValueError(f"{name} has no vocabulary of its own: give vocab_size")
  return ModelConfig(
    vocab_size=vocab_size or VOCABULARIES[name], **PRESETS[name]
  )
