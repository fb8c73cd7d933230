"""What a decoder is: its sizes and the choices that tell families apart."""

import dataclasses
from collections.abc import Mapping

# Sees every token before: wider than any context.
FULL = 2**30
ROTATIONS = ("linear", "llama3", "yarn", "factors")
REMATS = ("none", "dots", "full")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
COMPUTES = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are changed for longer contexts.

  Attributes:
    kind: "linear" divides every frequency by `factor`. "llama3" divides those
      that turn less than `low_freq_factor` times over `original_context`, keeps
      those that turn more than `high_freq_factor` times, and blends between.
      "yarn" blends between `beta_slow` and `beta_fast` turns in the same way,
      but along the number of the frequency. "factors" divides each frequency
      by its own number.
    factor: Above 0; not read by "factors".
    low_freq_factor: Turns; "llama3" only.
    high_freq_factor: Turns, above `low_freq_factor`; "llama3" only.
    original_context: Tokens of the first training; "llama3" and "yarn".
    beta_fast: Turns, above `beta_slow`; "yarn" only.
    beta_slow: Turns; "yarn" only.
    truncate: Does the blend begin and end at whole numbers of frequencies?
      "yarn" only.
    factors: One number a frequency; "factors" only.
    attention_factor: Multiplies queries and keys once they are rotated, so
      that scores grow with its square.
  """

  kind: str
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_context: int = 8192
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  factors: tuple[float, ...] = ()
  attention_factor: float = 1.0

  def __post_init__(self):
    object.__setattr__(self, "factors", tuple(self.factors))
    if self.kind not in ROTATIONS:
      raise ValueError(
        f"rope_scaling.kind={self.kind!r} is none of {', '.join(ROTATIONS)}"
      )
    for name in ("factor", "original_context", "attention_factor"):
      if not getattr(self, name) > 0:
        raise ValueError(
          f"rope_scaling.{name}={getattr(self, name)} must be above 0"
        )
    for low, high in (
      ("low_freq_factor", "high_freq_factor"),
      ("beta_slow", "beta_fast"),
    ):
      if not 0 < getattr(self, low) < getattr(self, high):
        raise ValueError(
          f"rope_scaling.{low}={getattr(self, low)} must be above 0 and below "
          f"{high}={getattr(self, high)}"
        )
    if bool(self.factors) != (self.kind == "factors") or not all(
      factor > 0 for factor in self.factors
    ):
      raise ValueError(
        f"rope_scaling.factors={self.factors} must be above 0, and belong to "
        f"kind 'factors' alone, not to {self.kind!r}"
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
    family: Whose names a checkpoint has, such as "llama": see
      `formats.names.SAFETENSORS`.
    tied: Do logits read the embedding? Otherwise they have a table "unembed".
    qkv_bias: Queries, keys and values have a bias.
    o_bias: The product behind attention has one.
    mlp_bias: All three products of the MLP have one.
    qk_norm: Queries and keys are normed before they are rotated.
    qk_norm_joint: These norms are over all heads at once, not by head.
    pre_norms: Attention and MLP read a normed input.
    sandwich_norms: What attention and MLP give is normed, too.
    norm_offset: Added to the scale of every norm; 1 in Gemma.
    activation: Of the gate: "silu", "gelu", "gelu_tanh" or "relu".
    windows: By layer, how many tokens it sees, itself included; 0 for all.
      Empty where every layer sees all.
    rope_scaling: None for none.
    local_rope_theta: Base of the layers with a window; None where they are
      rotated as the others are.
    local_rope_scaling: Of these layers, where they have a base of their own.
    unrotated: By layer, True where queries and keys are not rotated. Empty
      where every layer rotates.
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
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  qk_norm_joint: bool = False
  pre_norms: bool = True
  sandwich_norms: bool = False
  norm_offset: float = 0.0
  activation: str = "silu"
  windows: tuple[int, ...] = ()
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  local_rope_scaling: RopeScaling | None = None
  unrotated: tuple[bool, ...] = ()
  embed_scale: float = 1.0
  query_scale: float | None = None
  softcap: float | None = None
  compute: str = "float32"
  remat: str = "none"
  num_ids: int | None = None

  def __post_init__(self):
    # As JSON brings them.
    for name in ("rope_scaling", "local_rope_scaling"):
      if isinstance(getattr(self, name), Mapping):
        object.__setattr__(self, name, RopeScaling(**getattr(self, name)))
    for name in ("windows", "unrotated"):
      by_layer = tuple(getattr(self, name))
      object.__setattr__(self, name, by_layer if any(by_layer) else ())
      if any(by_layer) and len(by_layer) != self.num_layers:
        raise ValueError(
          f"{len(by_layer)} {name} for num_layers={self.num_layers}"
        )
    for name in ("rope_scaling", "local_rope_scaling"):
      self._check_scaling(name, getattr(self, name))
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
    for name, known in (
      ("activation", ACTIVATIONS),
      ("compute", COMPUTES),
      ("remat", REMATS),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is none of {', '.join(known)}"
        )

  def _check_scaling(self, name: str, scaling: RopeScaling | None):
    """Raises ValueError where a scaling does not fit this decoder."""
    if scaling is None:
      return
    half = self.head_dim // 2
    if scaling.factors and len(scaling.factors) != half:
      raise ValueError(
        f"{len(scaling.factors)} {name}.factors for the {half} frequencies of "
        f"head_dim={self.head_dim}"
      )
    local = name.startswith("local")
    theta = self.local_rope_theta if local else self.rope_theta
    if theta is None:
      raise ValueError(f"{name} without local_rope_theta")
    if scaling.kind == "yarn" and not theta > 1:
      raise ValueError(f"rope_theta={theta} must be above 1 for yarn")

  @property
  def reach(self) -> tuple[int, ...]:
    """By layer, how many tokens it sees; `FULL` for all."""
    return tuple(w or FULL for w in self.windows) or (FULL,) * self.num_layers
