"""The critic: a decoder trunk with one value per token."""

from typing import Any

import chex
import jax.numpy as jnp

from steppo_jax.models import lora, transformer


def init_critic(policy_params: dict[str, Any]) -> dict[str, Any]:
  """A separate critic whose trunk starts at the policy's weights.

  The head starts at zero, so that the first values are 0 everywhere.

  Args:
    policy_params: Decoder parameters; copied, not shared. Adapters are left
      out.
  """
  policy_params = lora.off(policy_params)
  width = policy_params["final_norm"]["scale"].shape[0]
  return {
    # A critic has no logits.
    "trunk": {k: v for k, v in policy_params.items() if k != "unembed"},
    "head": {"kernel": jnp.zeros((width,)), "bias": jnp.zeros(())},
  }


def values(
  config: transformer.ModelConfig,
  params: dict[str, Any],
  tokens: chex.Array,
  positions: chex.Array,
  attend: transformer.Attend,
) -> chex.Array:
  """V at every token [B, T], float32, in reward units."""
  hidden = transformer.apply(config, params["trunk"], tokens, positions, attend)
  head = params["head"]
  hidden = hidden.astype(jnp.float32)
  return (hidden @ head["kernel"] + head["bias"]).astype(jnp.float32)
