"""The critic: a decoder trunk with one value per token, or two."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from steppo_jax.models import lora, transformer
from steppo_jax.ops import floats


def init_critic(
  policy_params: dict[str, Any],
  *,
  own_trunk: bool,
  num_layers: int | None = None,
  two_heads: bool = False,
) -> dict[str, Any]:
  """A critic whose trunk starts at the policy's weights, or is the policy's.

  The heads start at zero, so that the first values are 0 everywhere. All of it
  is trained, and so at least float32, whatever the policy's matrices are.

  Args:
    policy_params: Decoder parameters; copied, not shared. Adapters are left
      out.
    own_trunk: False leaves the trunk to the policy, whose hidden states the
      head then reads without moving them.
    num_layers: Layers of the policy that the trunk has, its first ones; None
      for all.
    two_heads: Whether there is a second head, `token_head`.
  """
  policy_params = lora.off(policy_params)
  width = policy_params["final_norm"]["scale"].shape[0]
  names = ("head", "token_head") if two_heads else ("head",)
  heads = {
    name: {"kernel": jnp.zeros((width,)), "bias": jnp.zeros(())}
    for name in names
  }
  if not own_trunk:
    return heads
  # A critic has no logits.
  trunk = {k: v for k, v in policy_params.items() if k != "unembed"}
  if num_layers is not None:
    trunk["layers"] = jax.tree.map(lambda x: x[:num_layers], trunk["layers"])
  return {"trunk": jax.tree.map(floats.wide, trunk), **heads}


def values(
  config: transformer.ModelConfig,
  params: dict[str, Any],
  policy: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attend: transformer.Attend,
) -> chex.Array | tuple[chex.Array, chex.Array]:
  """V at every token [B, T], at least float32, in reward units.

  Args:
    config: Sizes of the decoder.
    params: The critic's, from `init_critic`.
    policy: Whose trunk a critic without one of its own reads. The learner
      differentiates in the critic's parameters alone.
    tokens: [B, T] int32.
    positions: [B, T] int32.
    attend: Who sees whom.

  Returns:
    [B, T], or two of them for a critic with two heads.
  """
  trunk = params.get("trunk")
  if trunk is None:
    trunk = policy
  depth = jax.tree.leaves(trunk["layers"])[0].shape[0]
  config = dataclasses.replace(
    config,
    num_layers=depth,
    windows=config.windows[:depth],
    unrotated=config.unrotated[:depth],
  )
  hidden = transformer.apply(config, trunk, tokens, positions, attend)
  return read(params, hidden)


def read(
  params: dict[str, Any], hidden: chex.Array
) -> chex.Array | tuple[chex.Array, chex.Array]:
  """V [B, T], float32, of hidden states [B, T, D] that a trunk made.

  Two of them where the critic has two heads.
  """

  def one(head):
    x, kernel, bias = floats.of(hidden, head["kernel"], head["bias"])
    return x @ kernel + bias

  if "token_head" not in params:
    return one(params["head"])
  return one(params["head"]), one(params["token_head"])
