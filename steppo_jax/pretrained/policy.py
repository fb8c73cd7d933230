"""Policies as files: the starting point of a run, and what it ends with."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import trees, types
from steppo_jax.models import lora, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.formats import peft, placing, weights
from steppo_jax.pretrained import sources
from steppo_jax.tokenizer import loading, sentencepiece_tokenizer


def load_tokenizer(
  name: str, weights: str | None = None, base: str | None = None
) -> types.Tokenizer:
  """The tokenizer that a run's options name.

  Args:
    name: "model" for the one that the weights bring with them; else what
      `tokenizer.loading.load` knows, or the name of a released model, whose
      tokenizer it is.
    weights: The run's starting policy; see `pretrained.sources.find`.
    base: The model that its adapters belong to; see there.

  Raises:
    ValueError: there is none, or it is broken.
    RuntimeError: a package that reads it is missing.
  """
  if name == loading.OWN_TOKENIZER:
    if weights is None:
      raise ValueError(f"tokenizer={name} needs weights that bring one")
    return sources.tokenizer_of(sources.find(weights, base=base))
  known = (loading.BYTES, *sentencepiece_tokenizer.BUNDLED)
  if name in known or pathlib.Path(name).exists():
    return loading.load(name)
  try:
    found = sources.find(name)
  except ValueError:
    return loading.load(name)  # Says what there is.
  return sources.tokenizer_of(found)


def load_policy(
  path: str,
  tokenizer: types.Tokenizer,
  base: str | None = None,
  placement: placing.Placement | None = None,
  dtype: Any = jnp.float32,
) -> tuple[transformer.ModelConfig, dict[str, Any]]:
  """Reads a policy and checks that it belongs to the tokenizer.

  Args:
    path: Weights that this package wrote, or a released model: a folder with
      config.json and safetensors, a GGUF file, or the name of an installed
      package with one inside; or a folder of PEFT's adapters
      (`pretrained.sources.find`).
    tokenizer: The run's tokenizer.
    base: The model that the adapters belong to, None for the one they name.
    placement: Where the parameters of a released model are read to; None for
      the first device. Weights that this package wrote come as NumPy arrays.
    dtype: Of the parameters; None for the type that they are stored in.

  Returns:
    Sizes of the decoder and its parameters, with adapters, in float32, where
    the path holds some.

  Raises:
    ValueError: the file is missing, cut short, of another tokenizer, or its
      arrays do not fit the sizes it names.
  """
  found = sources.find(path, base=base)
  if found.kind == "adapter":
    model, params = load_policy(
      str(found.base.path), tokenizer, placement=placement, dtype=dtype
    )
    return model, peft.load(found.path, model, params, placement=placement)
  if found.kind in ("folder", "gguf"):
    model, params = sources.load(found, dtype=dtype, placement=placement)
    if tokenizer.num_ids > model.vocab_size:
      raise ValueError(
        f"{path} knows {model.vocab_size} tokens, the tokenizer has "
        f"{tokenizer.num_ids}: use tokenizer={loading.OWN_TOKENIZER}"
      )
    return dataclasses.replace(model, num_ids=tokenizer.num_ids), params
  path = str(found.path)
  params, metadata = weights.load_params(path, dtype=dtype)
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


def fetch(
  params: dict[str, Any], *, keep: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
  """A policy on the host with its adapters merged, and the adapters.

  What has to be computed, or put together from devices of several processes,
  is so layer by layer: a device holds one more layer at most, or a table, and
  not a second policy. All processes of a run call it together.

  Args:
    params: Parameters on any devices.
    keep: Whether this process needs them; the host keeps none otherwise.

  Returns:
    What `save_policy` takes, and what `save_adapters` does: {} without any.
  """
  flat = trees.flatten(params)
  found = {}
  for path, leaf in trees.flatten(lora.off(params)).items():
    before = path.removesuffix("kernel")
    added = {x: flat[before + x] for x in lora.ADDED if before + x in flat}
    near = not added and _is_near(leaf)
    if near and not keep:
      continue  # Nobody waits for this process.
    if near or not path.startswith("layers/"):
      whole = mesh_lib.to_host(leaf)
    else:
      whole = np.empty(leaf.shape, leaf.dtype) if keep else None
      for layer in range(leaf.shape[0]):
        piece = mesh_lib.to_host(_merged({"kernel": leaf} | added, layer))
        if keep:
          whole[layer] = piece
    if keep:
      found[path] = whole
  adapters = {
    path: mesh_lib.to_host(leaf)
    for path, leaf in flat.items()
    if path.rpartition("/")[2] in lora.ADDED
  }
  return trees.unflatten(found), trees.unflatten(adapters) if keep else {}


def _is_near(leaf: Any) -> bool:
  """Whether this process reads an array without the devices of others."""
  if not isinstance(leaf, jax.Array):
    return True
  return leaf.is_fully_addressable or leaf.is_fully_replicated


@jax.jit
def _merged(parts: dict[str, Any], layer: int) -> jax.Array:
  """One layer of a matrix with its adapters, or of another array."""
  cut = lambda x: jax.lax.dynamic_slice_in_dim(x, layer, 1)
  return lora.merge(jax.tree.map(cut, parts))["kernel"][0]


def save_adapters(
  folder: pathlib.Path,
  model: transformer.ModelConfig,
  params: dict[str, Any],
  weights: str | None,
  base: str | None = None,
) -> None:
  """Writes the adapters of a policy as PEFT has them; see `formats.peft.save`.

  Args:
    folder: Made if it is missing.
    model: Sizes of the decoder.
    params: Its adapters, or its parameters with them.
    weights: The starting policy, which the adapters belong to, or which has
      begun with adapters itself; None for one that began from scratch.
    base: The model that those belong to, None for the one they name.
  """
  if weights is not None:
    found = sources.find(weights, base=base)
    found = found.base or found
    # A package keeps its name, which is the same on other machines.
    package = base is None and not pathlib.Path(weights).exists()
    weights = weights if package else str(found.path.absolute())
  peft.save(folder, model, params, base=weights)


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
