"""The critic: a decoder trunk with one value per token, or two."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from steppo_jax import trees
from steppo_jax.models import lora, transformer
from steppo_jax.models.options import LoraConfig
from steppo_jax.ops import floats


def init_critic(
  policy_params: dict[str, Any],
  *,
  own_trunk: bool,
  num_layers: int | None = None,
  two_heads: bool = False,
  adapters: LoraConfig | None = None,
  key: chex.PRNGKey | None = None,
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
    adapters: Those that the critic adds to the policy's layers, without an own
      trunk: "adapters" holds A and B of each. They change nothing yet.
    key: Draws them.
  """
  policy_params = lora.off(policy_params)
  width = policy_params["final_norm"]["scale"].shape[0]
  names = ("head", "token_head") if two_heads else ("head",)
  heads = {
    name: {"kernel": jnp.zeros((width,)), "bias": jnp.zeros(())}
    for name in names
  }
  if not own_trunk and not (adapters and adapters.rank):
    return heads
  # A critic has no logits.
  trunk = {k: v for k, v in policy_params.items() if k != "unembed"}
  first = functools.partial(_first, count=num_layers)
  if own_trunk:
    trunk["layers"] = first(trunk["layers"])
    return {"trunk": jax.tree.map(floats.wide, trunk), **heads}
  # Their shapes are enough: the layers stay the policy's.
  trunk["layers"] = jax.eval_shape(first, trunk["layers"])
  return {"adapters": lora.split(lora.add(trunk, adapters, key))[0], **heads}


def _first(layers: dict[str, Any], count: int | None) -> dict[str, Any]:
  """The first of stacked layers; None for all."""
  return jax.tree.map(lambda x: x[:count], layers)


def _trunk(
  params: dict[str, Any], policy: dict[str, Any], adapters: LoraConfig | None
) -> dict[str, Any]:
  """The layers that a critic's values come from."""
  if "adapters" not in params:
    return params.get("trunk", policy)
  if adapters is None or not adapters.rank:
    raise ValueError(
      "the critic has adapters: set learner.critic_lora to what they were made "
      "with"
    )
  own = params["adapters"]
  depth = jax.tree.leaves(own)[0].shape[0]
  trunk = lora.off(policy)
  trunk["layers"] = _first(trunk["layers"], depth)
  return lora.join(lora.with_scale(own, adapters), trees.flatten(trunk))


def values(
  config: transformer.ModelConfig,
  params: dict[str, Any],
  policy: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attend: transformer.Attend,
  adapters: LoraConfig | None = None,
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
    adapters: What a critic with adapters was made with.

  Returns:
    [B, T], or two of them for a critic with two heads.
  """
  trunk = _trunk(params, policy, adapters)
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
