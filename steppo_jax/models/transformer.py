"""A decoder-only transformer: RMSNorm, RoPE, grouped attention, gated MLP.

One decoder for Llama, Mistral, SmolLM 2 and 3, Qwen 2.5 and 3, OLMo 2 and 3 and
Gemma 3: what tells them apart is in `ModelConfig`.

The decoder never decides who sees whom: the caller passes `attend`, so that
the learner (interval mask over packed rows) and the sampler (key-value cache)
run the same layers.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from steppo_jax.models import lora, rotary
from steppo_jax.models.config import ModelConfig
from steppo_jax.ops import floats

# A kernel that lies as [out, in], in the trees of `by_layer`.
TURNED = "turned"
# (q [B, T, H, D], k [B, T, KV, D], v [B, T, KV, D]) -> [B, T, H, D]. A model
# with windows adds window=, a scalar: token i sees j if the position of i is
# less than `window` behind that of j.
Attend = Callable[[chex.Array, chex.Array, chex.Array], chex.Array]


def _param(module: nn.Module, name: str, start: Callable, shape: tuple):
  """`module.param`, which is not compared with what `start` would make.

  Flax traces the initializer for that comparison, every time that a layer is
  traced; it takes longer than the rest of a matrix product.
  """
  if module.has_variable("params", name):
    return module.get_variable("params", name)
  return module.param(name, start, shape)


class RMSNorm(nn.Module):
  """x / rms(x) * (offset + scale), in float32 or more.

  With `axis` the numbers of x lie in equal parts on the devices of that axis.
  """

  eps: float
  offset: float = 0.0
  axis: str | None = None

  @nn.compact
  def __call__(self, x):
    start = nn.initializers.constant(1.0 - self.offset)
    scale = _param(self, "scale", start, (x.shape[-1],))
    y = floats.wide(x)
    scale = floats.along_last(scale.astype(y.dtype), y)
    if self.offset:
      scale = self.offset + scale
    mean_square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    if self.axis is not None:
      mean_square = jax.lax.pmean(mean_square, self.axis)
    return (y * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)


def _by_turned(rows: chex.Array, turned: chex.Array, kind: Any) -> chex.Array:
  """[M, in] rows times a matrix that lies as [out, in], as `kind`."""
  product = functools.partial(jnp.matmul, preferred_element_type=kind)
  if rows.shape[0] <= 2:
    # On CPU a product with two columns takes longer than two with one.
    return jnp.stack([product(turned, row) for row in rows])
  return product(turned, rows.T).T


class Linear(nn.Module):
  """x @ kernel as one two-dimensional product, with a bias where asked.

  The leading axes are flattened first: with three-dimensional operands XLA's
  CPU backend takes 1.6 times as long for the backward pass. With `axis` each
  device of that axis has a part of the rows of the kernel and of x, and the
  products are added up.
  """

  features: int
  bias: bool = False
  axis: str | None = None

  @nn.compact
  def __call__(self, x):
    rows = x.reshape(-1, x.shape[-1])
    if self.has_variable("params", TURNED):
      turned = self.get_variable("params", TURNED).astype(x.dtype)
      y = _by_turned(rows, turned, x.dtype)
    else:
      shape = (x.shape[-1], self.features)
      kernel = _param(self, "kernel", nn.initializers.lecun_normal(), shape)
      y = self._product(rows, kernel)
    if self.axis is not None:
      y = jax.lax.psum(y, self.axis)
    if self.bias:
      bias = _param(self, "bias", nn.initializers.zeros, (self.features,))
      y = y + floats.along_last(bias.astype(x.dtype), y)
    return y.reshape(*x.shape[:-1], self.features)

  def _product(self, rows, kernel):
    if not self.has_variable("params", "lora_a"):
      return rows @ kernel.astype(rows.dtype)
    adapter = (self.get_variable("params", name) for name in lora.ADDED)
    return lora.product(rows, kernel, *adapter)


_ACTIVATIONS = {
  "silu": nn.silu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "gelu_tanh": nn.gelu,
  "relu": nn.relu,
}


class Block(nn.Module):
  """Attention and gated MLP, each behind a norm and a residual.

  With `axis` each device of that axis computes a part of the heads and of the
  inner width; `config` then has the sizes of a part.
  """

  config: ModelConfig
  attend: Attend
  axis: str | None = None

  def _norm(self, name, axis=None):
    c = self.config
    return RMSNorm(c.norm_eps, c.norm_offset, axis, name=name)

  def _attention(self, h, positions, window, rotates):
    c = self.config
    lead = h.shape[:-1]

    def project(name, heads):
      y = Linear(heads * c.head_dim, c.qkv_bias, name=name)(h)
      if c.qk_norm_joint and name != "v":
        y = self._norm(f"{name}_norm", self.axis)(y)
      return y.reshape(*lead, heads, c.head_dim)

    q = project("q", c.num_heads)
    k = project("k", c.num_kv_heads)
    v = project("v", c.num_kv_heads)
    if c.qk_norm and not c.qk_norm_joint:
      q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
    # Frequencies shared by two rotations are fused in another way, which would
    # change the last bits of what older weights sample.
    turn = lambda x: rotary.rotate(
      x, positions, *rotary.of_layer(c, window, rotates)
    )
    q, k = turn(q), turn(k)
    if c.query_scale is not None:
      # `attend` divides by the root of the width.
      q = q * jnp.asarray(c.query_scale * c.head_dim**0.5, q.dtype)
    options = {} if window is None else {"window": window}
    out = self.attend(q, k, v, **options)
    o = Linear(c.width, c.o_bias, self.axis, name="o")
    return o(out.reshape(*lead, -1))

  def _mlp(self, h):
    c = self.config
    linear = lambda name: Linear(c.mlp_width, c.mlp_bias, name=name)
    gate = _ACTIVATIONS[c.activation](linear("gate")(h))
    up = linear("up")(h)
    down = Linear(c.width, c.mlp_bias, self.axis, name="down")
    return down(gate * up)

  @nn.compact
  def __call__(self, x, positions, window=None, rotates=None):
    """One layer.

    Args:
      x: [B, T, D] residual stream.
      positions: [B, T] int32.
      window: How many tokens it sees; None in a model without windows.
      rotates: Does it rotate? None in a model whose layers all do.
    """
    c = self.config
    before = lambda name: self._norm(name) if c.pre_norms else lambda h: h
    behind = lambda name: self._norm(name) if c.sandwich_norms else lambda h: h
    h = before("attention_norm")(x)
    h = self._attention(h, positions, window, rotates)
    x = x + behind("post_attention_norm")(h)
    h = self._mlp(before("mlp_norm")(x))
    return x + behind("post_mlp_norm")(h)


def _embed(config: ModelConfig, rows: chex.Array) -> chex.Array:
  """Looked-up embeddings as the first layer reads them."""
  x = rows.astype(config.compute)
  if config.embed_scale == 1.0:
    return x
  return x * jnp.asarray(config.embed_scale, x.dtype)


def _remat(config: ModelConfig, body):
  if config.remat == "none":
    return body
  policy = None
  if config.remat == "dots":
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return nn.remat(body, policy=policy, prevent_cse=False)


class Decoder(nn.Module):
  """Token ids to hidden states; `logits` reads them."""

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
    table = lambda name: nn.Embed(
      c.vocab_size,
      c.width,
      embedding_init=nn.initializers.normal(c.width**-0.5),
      name=name,
    )
    x = _embed(c, table("embed")(tokens))
    if not c.tied and self.is_initializing():
      table("unembed")(tokens)

    def body(block, carry, layer):
      return block(carry, positions, *layer), None

    # Small stacks are unrolled: a rolled scan costs 10 % on CPU and saves
    # compile time only from seven layers on.
    stack = nn.scan(
      _remat(c, body),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=c.num_layers,
      unroll=c.num_layers if c.num_layers <= 6 else 1,
      # The check traces the layer once more. It also decides which numbers a
      # seed draws, and stays where parameters are made.
      check_constancy_invariants=self.is_initializing(),
    )
    windows = jnp.asarray(c.reach, jnp.int32) if c.windows else None
    rotates = ~jnp.asarray(c.unrotated) if c.unrotated else None
    x, _ = stack(Block(c, self.attend, name="layers"), x, (windows, rotates))
    return RMSNorm(c.norm_eps, c.norm_offset, name="final_norm")(x)


def init(config: ModelConfig, key: chex.PRNGKey) -> dict[str, Any]:
  """Returns decoder parameters: {"embed", "layers" [L, ...], "final_norm"}."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  decoder = Decoder(config, lambda q, k, v, **_: q)
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
  anew, and so copied, for every token that is decoded. Matrices lie as
  [out, in] there and are called "turned": few rows times them take two thirds
  of the time on CPU.

  Args:
    params: As `init` makes them.

  Returns:
    The same, but "layers" is a tuple of L trees.
  """
  depth = jax.tree.leaves(params["layers"])[0].shape[0]

  def cut(tree, i):
    if not isinstance(tree, Mapping):
      return tree[i]
    return {
      TURNED if name == "kernel" else name: (
        part[i].T if name == "kernel" else cut(part, i)
      )
      for name, part in tree.items()
    }

  return params | {
    "layers": tuple(cut(params["layers"], i) for i in range(depth))
  }


def apply_layerwise(
  config: ModelConfig,
  params: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attends: Sequence[Attend],
  axis: str | None = None,
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
    axis: The axis of devices that split the model, each of which calls this
      with its part of `params` and of `config`; None for one device.
  """
  x = _embed(config, _looked_up(params["embed"]["embedding"], tokens, axis))
  pairs = zip(params["layers"], attends, strict=True)
  for layer, (weights, attend) in enumerate(pairs):
    window = config.reach[layer] if config.windows else None
    rotates = not config.unrotated[layer] if config.unrotated else None
    block = Block(config, attend, axis)
    x = block.apply({"params": weights}, x, positions, window, rotates)
  norm = RMSNorm(config.norm_eps, config.norm_offset)
  return norm.apply({"params": params["final_norm"]}, x)


def _looked_up(table, tokens, axis):
  """Rows of a table, of which each device of `axis` has as many as the next."""
  if axis is None:
    return table[tokens]
  at = tokens - jax.lax.axis_index(axis) * table.shape[0]
  ours = (at >= 0) & (at < table.shape[0])
  rows = jnp.where(ours[..., None], table.at[at].get(mode="clip"), 0)
  return jax.lax.psum(rows, axis)


def unembedding(
  params: dict[str, Any], num_ids: int | None = None
) -> chex.Array:
  """[V, D], the table that turns hidden states into logits.

  Args:
    params: Decoder parameters.
    num_ids: V, the number of rows that stand for a token; None for all.
  """
  return params.get("unembed", params["embed"])["embedding"][:num_ids]


def capped(logits: chex.Array, softcap: float | None) -> chex.Array:
  """softcap · tanh(logits / softcap), or the logits without a cap."""
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def logits(
  config: ModelConfig, params: dict[str, Any], hidden: chex.Array
) -> chex.Array:
  """[..., D] hidden states to [..., V] float32 logits of `num_ids` tokens."""
  if jax.default_backend() == "cpu":  # jaxlib 0.7.2 has no such product there
    hidden = hidden.astype(jnp.float32)
  table = unembedding(params).astype(hidden.dtype)
  rows = hidden.reshape(-1, hidden.shape[-1])
  # Cut behind the product, where a row's logits are less than the table.
  found = _by_turned(rows, table, jnp.float32)[:, : config.num_ids]
  return capped(found.reshape(*hidden.shape[:-1], -1), config.softcap)


def num_params(params: Any) -> int:
  """Number of scalars in a tree of arrays."""
  return sum(x.size for x in jax.tree.leaves(params))


@functools.lru_cache(maxsize=4)
def abstract_params(config: ModelConfig) -> dict[str, Any]:
  """Shapes and types of `init`'s parameters, without making them."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))
