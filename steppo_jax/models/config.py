"""What a decoder is: its sizes and the choices that tell families apart."""

import dataclasses
from collections.abc import Mapping

# Sees every token before: wider than any context.
FULL = 2**30
REMATS = ("none", "dots", "full")
COMPUTES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are stretched for longer contexts.

  Attributes:
    kind: "linear" divides every frequency by `factor`. "llama3" divides those
      that turn less than `low_freq_factor` times over `original_context`, keeps
      those that turn more than `high_freq_factor` times, and blends between.
    factor: Above 0.
    low_freq_factor: Turns; "llama3" only.
    high_freq_factor: Turns, above `low_freq_factor`; "llama3" only.
    original_context: Tokens of the first training; "llama3" only.
  """

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_context: int = 8192

  def __post_init__(self):
    if self.kind not in ("linear", "llama3"):
      raise ValueError(
        f"rope_scaling.kind={self.kind!r} is none of linear, llama3"
      )
    if not self.factor > 0:
      raise ValueError(f"rope_scaling.factor={self.factor} must be above 0")
    if not self.low_freq_factor < self.high_freq_factor:
      raise ValueError(
        f"rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
        f"high_freq_factor={self.high_freq_factor}"
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of the decoder and the choices of its family.

  Attributes:
    vocab_size: Rows of the embedding.
    width: Width D of the residual stream.
    num_layers: Number of blocks.
    num_heads: Query heads H; a multiple of `num_kv_heads`.
    num_kv_heads: Key and value heads KV.
    head_dim: Width of one head; even, for the rotation.
    mlp_width: Inner width of the gated MLP.
    rope_theta: Base of the rotary frequencies.
    norm_eps: Added to the mean square in RMSNorm.
    family: Whose names a checkpoint has: "llama", "qwen2", "qwen3", "gemma3".
    tied: Do logits read the embedding? Otherwise they have a table "unembed".
    qkv_bias: Queries, keys and values have a bias.
    qk_norm: Queries and keys are normed by head before they are rotated.
    sandwich_norms: Attention and MLP are normed once more behind.
    norm_offset: Added to the scale of every norm; 1 in Gemma.
    activation: Of the gate: "silu" or "gelu_tanh".
    windows: By layer, how many tokens it sees, itself included; 0 for all.
      Empty where every layer sees all.
    local_rope_theta: Base of the layers with a window; None for `rope_theta`.
      They are never scaled.
    rope_scaling: Of the other layers; None for none.
    embed_scale: Multiplies embeddings.
    query_scale: Multiplies scores; None for head_dim ** -0.5.
    softcap: c in logits = c tanh(logits / c); None for none.
    compute: Type of activations, "float32" or "bfloat16". Norms, softmax,
      logits and log-probs are float32 either way.
    remat: What the backward pass computes again: "none"; "dots" all but
      products with weights; "full" every layer.
    num_ids: Rows that stand for a token, where the embedding has more of them;
      the policy gives the others no probability. None for all.
  """

  vocab_size: int
  width: int = 128
  num_layers: int = 4
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 32
  mlp_width: int = 320
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  family: str = "llama"
  tied: bool = True
  qkv_bias: bool = False
  qk_norm: bool = False
  sandwich_norms: bool = False
  norm_offset: float = 0.0
  activation: str = "silu"
  windows: tuple[int, ...] = ()
  local_rope_theta: float | None = None
  rope_scaling: RopeScaling | None = None
  embed_scale: float = 1.0
  query_scale: float | None = None
  softcap: float | None = None
  compute: str = "float32"
  remat: str = "none"
  num_ids: int | None = None

  def __post_init__(self):
    # As JSON brings them.
    if isinstance(self.rope_scaling, Mapping):
      object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
    windows = tuple(self.windows)
    object.__setattr__(self, "windows", windows if any(windows) else ())
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    if self.num_ids == self.vocab_size:  # One config for one computation.
      object.__setattr__(self, "num_ids", None)
    if not 0 < (self.num_ids or self.vocab_size) <= self.vocab_size:
      raise ValueError(
        f"num_ids={self.num_ids} is not between 1 and "
        f"vocab_size={self.vocab_size}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even for RoPE")
    if self.windows and len(self.windows) != self.num_layers:
      raise ValueError(
        f"{len(self.windows)} windows for num_layers={self.num_layers}"
      )
    for name, known in (
      ("activation", ("silu", "gelu_tanh")),
      ("compute", COMPUTES),
      ("remat", REMATS),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is none of {', '.join(known)}"
        )

  @property
  def reach(self) -> tuple[int, ...]:
    """By layer, how many tokens it sees; `FULL` for all."""
    return tuple(w or FULL for w in self.windows) or (FULL,) * self.num_layers
