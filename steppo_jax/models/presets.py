"""Decoder sizes by name."""

from steppo_jax.models import transformer

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
}  # fmt: skip


def get(name: str, vocab_size: int) -> transformer.ModelConfig:
  """The sizes called `name`, for a vocabulary of `vocab_size` ids.

  Raises:
    ValueError: no preset has that name.
  """
  if name not in PRESETS:
    raise ValueError(f"unknown model {name!r}; one of {', '.join(PRESETS)}")
  return transformer.ModelConfig(vocab_size=vocab_size, **PRESETS[name])
