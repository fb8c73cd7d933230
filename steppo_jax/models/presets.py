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
}  # fmt: skip


def get(name: str, vocab_size: int) -> transformer.ModelConfig:
  """The sizes called `name`, for a vocabulary of `vocab_size` ids.

  Raises:
    ValueError: no preset has that name.
  """
  if name not in PRESETS:
    raise ValueError(f"unknown model {name!r}; one of {', '.join(PRESETS)}")
  return transformer.ModelConfig(vocab_size=vocab_size, **PRESETS[name])
