"""Checkpoint folders as Hugging Face writes them: config.json, safetensors."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from steppo_jax import trees
from steppo_jax.models import transformer
from steppo_jax.models.config import ModelConfig
from steppo_jax.models.formats import hf_config, names, placing

_ONE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TYPES = {"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
# Old files hold what the configuration says already.
_DERIVED = ".rotary_emb.inv_freq"
_TIED = "lm_head.weight"


class _Files:
  """The tensors of a folder, of one file or many, opened and not yet read."""

  def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
    self._of: dict[str, Any] = {}
    self._name: dict[str, pathlib.Path] = {}
    listed = _weight_map(folder)
    for path in sorted({folder / file for file in listed.values()}):
      if not path.is_file():
        raise ValueError(
          f"{folder / _INDEX} names {path.name}, which is absent"
        )
      try:
        file = stack.enter_context(
          safetensors.safe_open(path, framework="numpy")
        )
      except safetensors.SafetensorError as error:
        raise ValueError(
          f"{path} ({path.stat().st_size} bytes) is cut short or is not a "
          f"safetensors file ({error}); copy it again"
        ) from error
      for name in file.keys():  # noqa: SIM118
        self._of[name], self._name[name] = file, path
    if (folder / _INDEX).is_file():
      wrong = [
        f"{name} is not in {file}"
        for name, file in listed.items()
        if self._name.get(name) != folder / file
      ]
      if wrong:
        raise ValueError(f"{folder / _INDEX}: {'; '.join(wrong[:8])}")

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every tensor but derived ones."""
    found = {}
    for name, file in self._of.items():
      if name.endswith(_DERIVED):
        continue
      part = file.get_slice(name)
      kind = part.get_dtype()
      if kind not in _TYPES:
        raise ValueError(
          f"{self._name[name]}: {name} is {kind}, and only "
          f"{', '.join(_TYPES)} are read"
        )
      found[name] = jax.ShapeDtypeStruct(part.get_shape(), _TYPES[kind])
    return found

  def dtype(self, name: str) -> Any:
    return _TYPES[self._of[name].get_slice(name).get_dtype()]

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    return self._of[name].get_slice(name)[index]


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
  """File of each tensor; {"": file} where there is but one."""
  if (folder / _INDEX).is_file():
    try:
      found = json.loads((folder / _INDEX).read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{folder / _INDEX} is no index ({error!r})") from error
    return dict(found)
  if (folder / _ONE).is_file():
    return {"": _ONE}
  raise ValueError(f"no {_ONE} and no {_INDEX} in {folder}")


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
      model.safetensors.index.json names.
    placement: Where each parameter goes, by path and shape; None for the first
      device.
    dtype: Of the parameters; None for the stored one.
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
    files = _Files(folder, stack)
    have, need = files.shapes(), names.expected(model, rows)
    twice = model.tied and _TIED in have and have.pop(_TIED)
    try:
      trees.check_like(have, need)
    except ValueError as error:
      raise ValueError(f"{folder}: {error}") from error
    if twice:
      _check_tied(files, twice, model, folder)
    params = placing.place(
      files, model, rows, placement=placement, dtype=dtype, progress=progress
    )
  return model, params


def _check_tied(files, head, model, folder):
  """Some tied checkpoints hold the table twice; it must be the same."""
  rows = max(1, placing.PIECE_BYTES // (4 * model.width))
  table = "model.embed_tokens.weight"
  same = tuple(head.shape) == (model.vocab_size, model.width)
  for start in range(0, model.vocab_size if same else 0, rows):
    part = (slice(start, min(start + rows, model.vocab_size)), slice(None))
    same &= np.array_equal(files.read(_TIED, part), files.read(table, part))
  if not same:
    raise ValueError(
      f"{folder}: tie_word_embeddings holds, but {_TIED} is not the embedding"
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
    dtype: Of the tensors; None for that of the parameters.
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
  files = _write(new, model, params, dtype, max_file_bytes)
  if len(files) == 1:
    (new / files[0][0]).rename(new / _ONE)
  else:
    index = {"metadata": {}, "weight_map": {}}
    for number, (path, held) in enumerate(files, 1):
      name = f"model-{number:05}-of-{len(files):05}.safetensors"
      (new / path).rename(new / name)
      index["weight_map"] |= dict.fromkeys(held, name)
    (new / _INDEX).write_text(json.dumps(index, indent=1))
  config = hf_config.to_config(model)
  kind = jax.tree.leaves(params)[0].dtype if dtype is None else dtype
  config["dtype"] = jnp.dtype(kind).name
  (new / "config.json").write_text(json.dumps(config, indent=1))
  os.replace(new, folder)


def _write(folder, model, params, dtype, limit):
  """Files of about `limit` bytes: [(name, names of tensors)]."""
  files, part, size = [], {}, 0

  def flush():
    name = f"part-{len(files)}.safetensors"
    safetensors.numpy.save_file(part, folder / name, metadata={"format": "pt"})
    files.append((name, list(part)))

  for name, value in placing.tensors(params, model, names.table(model)):
    value = value if dtype is None else value.astype(dtype)
    if part and size + value.nbytes > limit:
      flush()
      part, size = {}, 0
    part[name], size = value, size + value.nbytes
  flush()
  return files
