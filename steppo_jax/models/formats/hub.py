"""Checkpoint folders as Hugging Face writes them: config.json, safetensors."""

import collections
import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from steppo_jax import files, trees
from steppo_jax.models import transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import hf_config, names, placing, tensor_files

_TIED = "lm_head.weight"


def load(
  folder: str | os.PathLike,
  *,
  placement: placing.Placement | None = None,
  dtype: Any = None,
  progress: Callable[[int, int], None] | None = None,
) -> tuple[ModelConfig, dict[str, Any]]:
  """Reads a checkpoint folder straight onto the devices that need its parts.

  Names and shapes of all tensors are checked before the first is read.

  Args:
    folder: Holds config.json and model.safetensors, or the files that
      model.safetensors.index.json names; see `tensor_files.Folder`.
    placement: Where each parameter goes, by path and shape; None for the first
      device.
    dtype: Of the parameters; None for the stored one. A matrix is one array of
      all layers: where they are stored in different types, in the one that
      holds all of them.
    progress: Called with (arrays done, arrays in all) after each.

  Returns:
    Sizes of the decoder and its parameters.

  Raises:
    ValueError: a file is missing, cut short or no safetensors, the
      configuration is of no known model, or tensors are missing, unknown or of
      other shapes, which are then listed.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f"no folder {folder}: give that of a checkpoint")
  model = hf_config.from_config(folder)
  rows = names.table(model)
  with contextlib.ExitStack() as stack:
    held = tensor_files.Folder(folder, stack)
    have, need = held.shapes(), names.expected(model, rows)
    twice = model.tied and _TIED in have and have.pop(_TIED)
    try:
      trees.check_like(have, need)
    except ValueError as error:
      raise ValueError(f"{folder}: {error}") from error
    if twice:
      _check_tied(held, twice, model, folder)
    params = placing.place(
      held, model, rows, placement=placement, dtype=dtype, progress=progress
    )
  return model, params


def stored_types(folder: str | os.PathLike) -> dict[str, str]:
  """The type that each tensor of a folder is stored in, such as BF16, by name.

  Raises:
    ValueError: a file is missing or broken.
  """
  with contextlib.ExitStack() as stack:
    return tensor_files.Folder(pathlib.Path(folder), stack).types()


def _check_tied(held, head, model, folder):
  """Some tied checkpoints hold the table twice; it must be the same."""
  rows = max(1, placing.PIECE_BYTES // (4 * model.width))
  table = "model.embed_tokens.weight"
  same = tuple(head.shape) == (model.vocab_size, model.width)
  for start in range(0, model.vocab_size if same else 0, rows):
    part = (slice(start, min(start + rows, model.vocab_size)), slice(None))
    same &= np.array_equal(held.read(_TIED, part), held.read(table, part))
  if not same:
    raise ValueError(
      f"{folder}: tie_word_embeddings holds, but {_TIED} is not the embedding: "
      "set tie_word_embeddings to false in config.json to read both, as "
      f"transformers 5 does, or remove {_TIED} to tie them"
    )


def save(
  folder: str | os.PathLike,
  model: ModelConfig,
  params: Mapping[str, Any],
  *,
  dtype: Any = None,
  max_file_bytes: int = 5 * 10**9,
) -> None:
  """Writes a checkpoint folder that this package and transformers read.

  The folder appears whole or not at all.

  Args:
    folder: Made; must not exist.
    model: Sizes of the decoder.
    params: Its parameters.
    dtype: Of the tensors, or the type of each by its name; None for that of the
      parameters.
    max_file_bytes: Tensors are split over files of about this size.

  Raises:
    ValueError: the folder exists, or the parameters do not fit the sizes.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise ValueError(f"{folder} exists: remove it or take another name")
  trees.check_like(params, transformer.abstract_params(model))
  new = folder.with_name(folder.name + ".tmp")
  new.mkdir(parents=True, exist_ok=True)
  for left in new.iterdir():  # of a save that was killed
    left.unlink()
  written, kinds = _write(new, model, params, dtype, max_file_bytes)
  if len(written) == 1:
    (new / written[0][0]).rename(new / tensor_files.ONE)
  else:
    index = {"metadata": {}, "weight_map": {}}
    for number, (path, held) in enumerate(written, 1):
      name = f"model-{number:05}-of-{len(written):05}.safetensors"
      (new / path).rename(new / name)
      index["weight_map"] |= dict.fromkeys(held, name)
    (new / tensor_files.INDEX).write_text(json.dumps(index, indent=1))
  config = hf_config.to_config(model)
  config["dtype"] = kinds.most_common(1)[0][0]
  (new / "config.json").write_text(json.dumps(config, indent=1))
  os.replace(new, folder)


def _write(folder, model, params, dtype, limit):
  """Files of about `limit` bytes: [(name, names of tensors)]; bytes by type."""
  written, part, size, kinds = [], {}, 0, collections.Counter()

  def flush():
    name = f"part-{len(written)}.safetensors"
    with files.replacing(folder / name) as new:
      safetensors.numpy.save_file(part, new, metadata={"format": "pt"})
    written.append((name, list(part)))

  for name, value in placing.tensors(params, model, names.table(model)):
    kind = dtype.get(name) if isinstance(dtype, Mapping) else dtype
    value = value if kind is None else value.astype(kind)
    kinds[value.dtype.name] += value.nbytes
    if part and size + value.nbytes > limit:
      flush()
      part, size = {}, 0
    part[name], size = value, size + value.nbytes
  flush()
  return written, kinds
