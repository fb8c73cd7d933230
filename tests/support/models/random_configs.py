"""Random configurations of every family, as files spell them."""

import random
from typing import Any

# model_type -> keys that the family reads beside those of all.
FAMILIES = {
  "llama": ("attention_bias", "mlp_bias"),
  "mistral": (),
  "qwen2": (),
  "qwen3": ("attention_bias",),
  "gemma3_text": ("attention_bias",),
  "smollm3": ("attention_bias", "mlp_bias"),
  "olmo2": ("attention_bias",),
  "olmo3": ("attention_bias",),
}
_NESTED = ("gemma3_text", "olmo3")
_SLIDING, _FULL = "sliding_attention", "full_attention"


def draw(model_type: str, rng: random.Random) -> dict[str, Any]:
  """One configuration; keys are left out, null and at odds at times."""
  heads = rng.choice([2, 4])
  config = {
    "model_type": model_type, "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": rng.choice([1, 3, 5]),
    "num_attention_heads": heads,
    "num_key_value_heads": rng.choice([1, 2, heads]), "pad_token_id": 0,
  }  # fmt: skip
  maybe = lambda chance, key, *values: config.update(
    {key: rng.choice(values)} if rng.random() < chance else {}
  )
  if rng.random() < 0.1:
    config["num_key_value_heads"] = None
  if rng.random() < 0.05:
    del config["num_key_value_heads"]
  maybe(0.6, "head_dim", 8, 16)
  maybe(0.6, "rms_norm_eps", 1e-6, 1e-5, 1e-2)
  maybe(0.5, "tie_word_embeddings", True, False)
  maybe(0.5, "max_position_embeddings", 16, 64, 256)
  act = "hidden_activation" if model_type == "gemma3_text" else "hidden_act"
  maybe(0.4, act, "silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu")
  for key in FAMILIES[model_type]:
    maybe(0.4, key, True, False)
  maybe(0.02, "attention_bias", True)
  maybe(0.02, "mlp_bias", True)
  if model_type == "gemma3_text":
    maybe(0.6, "query_pre_attn_scalar", 8, 24, 168)
    maybe(0.4, "final_logit_softcapping", 6.0, 30.0, None)
    maybe(0.05, "attn_logit_softcapping", 50.0)
    maybe(0.1, "use_bidirectional_attention", True, False, False)
  _windows(config, rng, maybe)
  _rotations(config, rng, maybe)
  return config


def _windows(config, rng, maybe):
  kind, layers = config["model_type"], config["num_hidden_layers"]
  maybe(0.8, "sliding_window", 3, 9, 9, 30, None)
  windowed = kind in ("qwen2", "qwen3", "smollm3")
  maybe(0.8 if windowed else 0.1, "use_sliding_window", True, True, False)
  if kind in ("qwen2", "qwen3"):
    maybe(0.6, "max_window_layers", 0, 1, 2, 28)
  if kind == "smollm3":
    maybe(0.4, "no_rope_layer_interval", 1, 2, 3)
    maybe(0.4, "no_rope_layers", [rng.randint(0, 1) for _ in range(layers)])
  if kind == "gemma3_text":
    maybe(0.5, "sliding_window_pattern", 1, 2, 3)
    maybe(0.2, "_sliding_window_pattern", 2, 6)
  often = kind in ("qwen2", "qwen3", "gemma3_text", "smollm3", "olmo3")
  chosen = [rng.choice([_SLIDING, _FULL]) for _ in range(layers)]
  maybe(0.4 if often else 0.1, "layer_types", chosen)


def _rotations(config, rng, maybe):
  theta = lambda: rng.choice([100.0, 1e4, 5e5, 10_000])
  nested = config["model_type"] in _NESTED
  half = config.get("head_dim", 32 // config["num_attention_heads"]) // 2
  spelling = rng.choice(["old", "new", "new", "both", "neither"])
  maybe(0.5 if spelling != "new" else 0.1, "rope_theta", theta())
  if config["model_type"] == "gemma3_text":
    maybe(0.4, "rope_local_base_freq", 100.0, 5e3)
  if spelling in ("old", "both") and rng.random() < 0.8:
    found = scaling(rng, half)
    if rng.random() < 0.2:
      found["type"] = found.pop("rope_type")
    if rng.random() < 0.2:
      found["rope_theta"] = theta()
    config["rope_scaling"] = found
  if spelling in ("new", "both"):
    one = lambda: (
      scaling(rng, half)
      | ({"rope_theta": theta()} if rng.random() < 0.8 else {})
    )
    config["rope_parameters"] = one()
    if nested and rng.random() < 0.95:
      config["rope_parameters"] = {_FULL: one(), _SLIDING: one()}
      if rng.random() < 0.1:
        del config["rope_parameters"][rng.choice([_FULL, _SLIDING])]


def scaling(rng: random.Random, half: int) -> dict[str, Any]:
  """One rotation, without its base."""
  common = ("default", "linear", "yarn") * 2
  kind = rng.choice((*common, "llama3", "llama3", "longrope", "dynamic"))
  found: dict[str, Any] = {"rope_type": kind}
  if kind != "default":
    found["factor"] = rng.choice([2.0, 4, 8.0])
  context = rng.choice([8, 16, 64])
  if kind in ("llama3", "yarn", "longrope") and rng.random() < 0.9:
    found["original_max_position_embeddings"] = context
  if kind == "llama3":
    found |= {"low_freq_factor": 1.0, "high_freq_factor": rng.choice([2, 4.0])}
  if kind == "yarn":
    some = lambda key, *values: found.update(
      {key: rng.choice(values)} if rng.random() < 0.3 else {}
    )
    some("attention_factor", 1.0, 1.3, None)
    some("beta_fast", 16.0, 4)
    some("beta_slow", 2.0, 1)
    some("truncate", True, True, False)
    some("mscale", 1.0, 0.7)
    some("mscale_all_dim", 1.0, 0.4)
  if kind == "longrope":
    factors = lambda: [rng.choice([1.0, 1.5, 3.0]) for _ in range(half)]
    found["short_factor"] = factors()
    found["long_factor"] = (
      found["short_factor"] if rng.random() < 0.5 else factors()
    )
    if rng.random() < 0.3:
      found["attention_factor"] = 1.2
  if rng.random() < 0.02:
    found["partial_rotary_factor"] = 0.5
  return found
