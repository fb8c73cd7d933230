"""Policies as files: the starting point of a run, and what it ends with."""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp

from steppo_jax import trees, types
from steppo_jax.models import transformer
from steppo_jax.models.formats import weights
from steppo_jax.pretrained import sources
from steppo_jax.tokenizer import loading, sentencepiece_tokenizer


def load_tokenizer(name: str, weights: str | None = None) -> types.Tokenizer:
  """The tokenizer that a run's options name.

  Args:
    name: "model" for the one that the weights bring with them; else what
      `tokenizer.loading.load` knows, or the name of a released model, whose
      tokenizer it is.
    weights: The run's starting policy; see `pretrained.sources.find`.

  Raises:
    ValueError: there is none, or it is broken.
    RuntimeError: a package that reads it is missing.
  """
  if name == loading.OWN_TOKENIZER:
    if weights is None:
      raise ValueError(f"tokenizer={name} needs weights that bring one")
    return sources.tokenizer_of(sources.find(weights))
  known = (loading.BYTES, *sentencepiece_tokenizer.BUNDLED)
  if name in known or pathlib.Path(name).exists():
    return loading.load(name)
  try:
    found = sources.find(name)
  except ValueError:
    return loading.load(name)  # Says what there is.
  return sources.tokenizer_of(found)


def load_policy(
  path: str, tokenizer: types.Tokenizer
) -> tuple[transformer.ModelConfig, dict[str, Any]]:
  """Reads a policy and checks that it belongs to the tokenizer.

  Args:
    path: Weights that this package wrote, or a released model: a folder with
      config.json and safetensors, a GGUF file, or the name of an installed
      package with one inside (`pretrained.sources.find`).
    tokenizer: The run's tokenizer.

  Returns:
    Sizes of the decoder and its parameters in float32.

  Raises:
    ValueError: the file is missing, cut short, of another tokenizer, or its
      arrays do not fit the sizes it names.
  """
  found = sources.find(path)
  if found.kind in ("folder", "gguf"):
    model, params = sources.load(found, dtype=jnp.float32)
    if tokenizer.num_ids > model.vocab_size:
      raise ValueError(
        f"{path} knows {model.vocab_size} tokens, the tokenizer has "
        f"{tokenizer.num_ids}: use tokenizer={loading.OWN_TOKENIZER}"
      )
    return dataclasses.replace(model, num_ids=tokenizer.num_ids), params
  path = str(found.path)
  params, metadata = weights.load_params(path, dtype="float32")
  if "model" not in metadata or "tokenizer" not in metadata:
    raise ValueError(
      f"{path} does not name its model and tokenizer: it was not written by "
      "`python -m steppo_jax train`"
    )
  if metadata["tokenizer"] != tokenizer.digest:
    raise ValueError(
      f"{path} was trained with tokenizer {metadata['tokenizer'][:12]}, this "
      f"one is {tokenizer.digest[:12]}: use the weights' own tokenizer"
    )
  model = transformer.ModelConfig(**json.loads(metadata["model"]))
  trees.check_like(params, transformer.abstract_params(model))
  return model, params


def save_policy(
  path: str | pathlib.Path,
  model: transformer.ModelConfig,
  params: dict[str, Any],
  tokenizer: types.Tokenizer,
  facts: dict[str, Any],
) -> None:
  """Writes a policy with what `load_policy` checks and some facts."""
  metadata = {
    "model": json.dumps(dataclasses.asdict(model)),
    "tokenizer": tokenizer.digest,
    "facts": json.dumps(facts),
  }
  weights.save_params(path, params, metadata)
