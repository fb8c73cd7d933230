"""A decoder-only transformer: RMSNorm, RoPE, grouped attention, gated MLP.

The decoder never decides who sees whom: the caller passes `attend`, so that
the learner (interval mask over packed rows) and the sampler (key-value cache)
run the same layers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

# (q [B, T, H, D], k [B, T, KV, D], v [B, T, KV, D]) -> [B, T, H, D]
Attend = Callable[[chex.Array, chex.Array, chex.Array], chex.Array]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of the decoder.

  Attributes:
    vocab_size: Number of token ids.
    width: Width D of the residual stream.
    num_layers: Number of blocks.
    num_heads: Query heads H; a multiple of `num_kv_heads`.
    num_kv_heads: Key and value heads KV.
    head_dim: Width of one head; even, for the rotation.
    mlp_width: Inner width of the gated MLP.
    rope_theta: Base of the rotary frequencies.
    norm_eps: Added to the mean square in RMSNorm.
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

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even for RoPE")


def rope(x: chex.Array, positions: chex.Array, theta: float) -> chex.Array:
  """Rotates [B, T, H, D] by position; halves are paired as in Llama."""
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None, None].astype(jnp.float32) * frequency
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  # One product with each of two full-width factors: on CPU the backward pass of
  # two halves put side by side takes longer.
  cos = jnp.concatenate([cos, cos], axis=-1)
  sin = jnp.concatenate([-sin, sin], axis=-1)
  return x * cos + jnp.roll(x, half, axis=-1) * sin


class RMSNorm(nn.Module):
  """x / rms(x) * scale, in float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + self.eps) * scale


class Linear(nn.Module):
  """x @ kernel as one two-dimensional product.

  The leading axes are flattened first: with three-dimensional operands XLA's
  CPU backend takes 1.6 times as long for the backward pass.
  """

  features: int

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    y = x.reshape(-1, x.shape[-1]) @ kernel
    return y.reshape(*x.shape[:-1], self.features)


class Block(nn.Module):
  """Attention and gated MLP, each behind a norm and a residual."""

  config: ModelConfig
  attend: Attend

  @nn.compact
  def __call__(self, x, positions):
    c = self.config
    lead = x.shape[:-1]
    h = RMSNorm(c.norm_eps, name="attention_norm")(x)
    q = Linear(c.num_heads * c.head_dim, name="q")(h)
    k = Linear(c.num_kv_heads * c.head_dim, name="k")(h)
    v = Linear(c.num_kv_heads * c.head_dim, name="v")(h)
    q = rope(q.reshape(*lead, -1, c.head_dim), positions, c.rope_theta)
    k = rope(k.reshape(*lead, -1, c.head_dim), positions, c.rope_theta)
    out = self.attend(q, k, v.reshape(*lead, -1, c.head_dim))
    x = x + Linear(c.width, name="o")(out.reshape(*lead, -1))
    h = RMSNorm(c.norm_eps, name="mlp_norm")(x)
    gate = nn.silu(Linear(c.mlp_width, name="gate")(h))
    up = Linear(c.mlp_width, name="up")(h)
    return x + Linear(c.width, name="down")(gate * up)


class Decoder(nn.Module):
  """Token ids to hidden states; `logits` ties the embedding."""

  config: ModelConfig
  attend: Attend

  @nn.compact
  def __call__(self, tokens, positions):
    """Returns hidden states [B, T, D] after the last norm.

    Args:
      tokens: [B, T] int32.
      positions: [B, T] int32.
    """
    c = self.config
    embed = nn.Embed(
      c.vocab_size,
      c.width,
      embedding_init=nn.initializers.normal(c.width**-0.5),
      name="embed",
    )
    x = embed(tokens)

    def body(block, carry, _):
      return block(carry, positions), None

    # Small stacks are unrolled: a rolled scan costs 10 % on CPU and saves
    # compile time only from seven layers on.
    stack = nn.scan(
      body,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=c.num_layers,
      unroll=c.num_layers if c.num_layers <= 6 else 1,
    )
    x, _ = stack(Block(c, self.attend, name="layers"), x, None)
    return RMSNorm(c.norm_eps, name="final_norm")(x)


def init(config: ModelConfig, key: chex.PRNGKey) -> dict[str, Any]:
  """Returns decoder parameters: {"embed", "layers" [L, ...], "final_norm"}."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  decoder = Decoder(config, lambda q, k, v: q)
  return decoder.init(key, tokens, tokens)["params"]


def apply(
  config: ModelConfig,
  params: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attend: Attend,
) -> chex.Array:
  """Hidden states [B, T, D] of tokens [B, T] under the caller's mask."""
  return Decoder(config, attend).apply({"params": params}, tokens, positions)


def by_layer(params: dict[str, Any]) -> dict[str, Any]:
  """The parameters with one tree a layer in place of stacked arrays.

  A copy, to be made once for many tokens: a layer of stacked arrays is cut out
  anew, and so copied, for every token that is decoded.

  Args:
    params: As `init` makes them.

  Returns:
    The same, but "layers" is a tuple of L trees.
  """
  depth = jax.tree.leaves(params["layers"])[0].shape[0]
  cut = lambda i: jax.tree.map(lambda p: p[i], params["layers"])
  return params | {"layers": tuple(cut(i) for i in range(depth))}


def apply_layerwise(
  config: ModelConfig,
  params: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attends: Sequence[Attend],
) -> chex.Array:
  """`apply` with one `attend` a layer, which the sampler's cache needs.

  The layers run in a Python loop, so that each layer's cache is an array of
  its own and is updated in place; stacked in a scan it would be copied whole
  for every token.

  Args:
    config: Sizes of the decoder.
    params: As `by_layer` makes them.
    tokens: [B, T] int32.
    positions: [B, T] int32.
    attends: L functions.
  """
  x = params["embed"]["embedding"][tokens]
  for weights, attend in zip(params["layers"], attends, strict=True):
    x = Block(config, attend).apply({"params": weights}, x, positions)
  norm = RMSNorm(config.norm_eps)
  return norm.apply({"params": params["final_norm"]}, x)


def logits(params: dict[str, Any], hidden: chex.Array) -> chex.Array:
  """[..., D] hidden states to [..., V] float32 logits, embeddings tied."""
  table = params["embed"]["embedding"]
  return jnp.einsum("...d,vd->...v", hidden, table).astype(jnp.float32)


def num_params(params: Any) -> int:
  """Number of scalars in a tree of arrays."""
  return sum(x.size for x in jax.tree.leaves(params))


def abstract_params(config: ModelConfig) -> dict[str, Any]:
  """Shapes and types of `init`'s parameters, without making them."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))
