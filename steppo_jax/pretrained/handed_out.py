"""Policies as files that a run hands out to servers: whole, or adapters alone.

Adapters belong to one base, which both sides have. A mark of it in the file
tells a server that has another one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from steppo_jax import trees, types
from steppo_jax.models import lora, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.formats import weights
from steppo_jax.sampler import hand_over

# Beside the parameters: a header, adapters, and what pads them.
_MORE_BYTES = 1 << 26
# The sampler has no backward pass.
_FREE = ("remat",)


def write(path: pathlib.Path, params: Mapping[str, Any]) -> None:
  """Writes a policy, or its adapters where it has some.

  Args:
    path: A safetensors file.
    params: The policy, on any devices.
  """
  facts = {}
  if lora.has(params):
    facts["base"] = hand_over.mark(lora.off(params))
    params = {
      name: value
      for name, value in trees.flatten(params).items()
      if "/lora_" in name
    }
  weights.save_params(path, trees.unflatten(mesh_lib.to_host(params)), facts)


def read(
  path: pathlib.Path, model: transformer.ModelConfig, base: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads what `write` wrote.

  Args:
    path: The file.
    model: Sizes of the decoder.
    base: Its parameters, to which adapters are put.

  Raises:
    ValueError: the file is broken, of another model, or holds adapters of
      another base.
  """
  params, facts = weights.load_params(path)
  if "base" in facts:
    if facts["base"] != hand_over.mark(base):
      raise ValueError(
        "the adapters belong to another model than the one that is served: "
        "serve the weights that the run began with"
      )
    flat = trees.flatten(base) | trees.flatten(params)
    params = trees.unflatten(dict(sorted(flat.items())))
  try:
    merged = jax.eval_shape(lora.merge, params)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"the adapters do not fit the model: {error}") from error
  trees.check_like(merged, transformer.abstract_params(model))
  return params


def largest(model: transformer.ModelConfig) -> int:
  """Most bytes of a file of a model."""
  leaves = jax.tree.leaves(transformer.abstract_params(model))
  return sum(x.size * 4 for x in leaves) + _MORE_BYTES


def facts(
  model: transformer.ModelConfig,
  tokenizer: types.Tokenizer,
  *,
  seed: int,
  context: int,
  max_new_tokens: int,
) -> dict[str, Any]:
  """What server and run have to agree on, as JSON gives it back.

  Args:
    model: Sizes of the decoder.
    tokenizer: Of the model.
    seed: Root of the sampler's random numbers.
    context: Tokens of prompt and response.
    max_new_tokens: Of a response.
  """
  sizes = dataclasses.asdict(model)
  return json.loads(
    json.dumps(
      {
        "model": {k: v for k, v in sizes.items() if k not in _FREE},
        "tokenizer": tokenizer.digest,
        "seed": seed,
        "context": context,
        "max_new_tokens": max_new_tokens,
      }
    )
  )
