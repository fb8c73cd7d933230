"""The critic: a decoder trunk with one value per token."""

from typing import Any

import chex
import jax.numpy as jnp

from steppo_jax.models import lora, transformer
from steppo_jax.ops import floats


def init_critic(
  policy_params: dict[str, Any], *, own_trunk: bool
) -> dict[str, Any]:
  """A critic whose trunk starts at the policy's weights, or is the policy's.

  The head starts at zero, so that the first values are 0 everywhere.

  Args:
    policy_params: Decoder parameters; copied, not shared. Adapters are left
      out.
    own_trunk: False leaves the trunk to the policy, whose hidden states the
      head then reads without moving them.
  """
  policy_params = lora.off(policy_params)
  width = policy_params["final_norm"]["scale"].shape[0]
  head = {"kernel": jnp.zeros((width,)), "bias": jnp.zeros(())}
  if not own_trunk:
    return {"head": head}
  # A critic has no logits.
  trunk = {k: v for k, v in policy_params.items() if k != "unembed"}
  return {"trunk": trunk, "head": head}


def values(
  config: transformer.ModelConfig,
  params: dict[str, Any],
  policy: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attend: transformer.Attend,
) -> chex.Array:
  """V at every token [B, T], at least float32, in reward units.

  Args:
    config: Sizes of the decoder.
    params: The critic's, from `init_critic`.
    policy: Whose trunk a critic without one of its own reads. The learner
      differentiates in the critic's parameters alone.
    tokens: [B, T] int32.
    positions: [B, T] int32.
    attend: Who sees whom.
  """
  trunk = params.get("trunk")
  if trunk is None:
    trunk = policy
  hidden = transformer.apply(config, trunk, tokens, positions, attend)
  return read(params, hidden)


def read(params: dict[str, Any], hidden: chex.Array) -> chex.Array:
  """V [B, T], float32, of hidden states [B, T, D] that a trunk made."""
  head = params["head"]
  hidden, kernel, bias = floats.of(hidden, head["kernel"], head["bias"])
  return hidden @ kernel + bias
