"""The safetensors files of a checkpoint folder, opened and not yet read.

Which file counts, when a folder says it twice, is decided as transformers does
(5.24, `modeling_utils`): model.safetensors before the index, and what the index
says of a tensor that two files hold.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from steppo_jax import files as files_lib

ONE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What safetensors calls the types that are read.
TYPES = {"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
# Old files hold what the configuration says already.
_DERIVED = ".rotary_emb.inv_freq"
# Modules around modules, which leave their name in the middle of another:
# torch.compile, sharded data parallelism, activations computed again.
_INSIDE = re.compile(
  r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# In front: data parallelism, and PEFT once its adapters are merged.
_BEFORE = ("module.", "base_model.model.")
# The text model inside a model that also reads images or sound.
_TEXT_MODEL = "language_model."
# What a decoder without its head is saved as.
_BARE = ("embed_tokens.", "layers.", "norm.")
_OTHER_KINDS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack")


def opened(path: pathlib.Path) -> Any:
  """A safetensors file, as a context manager that closes it.

  Raises:
    ValueError: it is cut short, no safetensors, or a pointer of Git LFS.
  """
  files_lib.refuse_pointer(path)
  try:
    return safetensors.safe_open(path, framework="numpy")
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} ({path.stat().st_size} bytes) is cut short or is not a "
      f"safetensors file ({error}); copy it again"
    ) from error


def not_read(folder: pathlib.Path) -> str:
  """Says which files of weights a folder has that are not read, "" for none."""
  names = sorted(p.name for kind in _OTHER_KINDS for p in folder.glob(kind))
  if not names:
    return ""
  some = f"{', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
  if all(name.startswith("model-") for name in names):
    return f"; there is {some}: copy {INDEX}, which names them, as well"
  return (
    f"; there is {some}, which is not read: load it with transformers and "
    "write it with model.save_pretrained(FOLDER)"
  )


def text_name(name: str) -> str:
  """What the tensor of a text decoder is called without what is around it."""
  name = _INSIDE.sub("", name)
  while name.startswith(_BEFORE):
    name = name.removeprefix(_BEFORE[0]).removeprefix(_BEFORE[1])
  before, text_model, after = name.partition(_TEXT_MODEL)
  if text_model and before in ("", "model."):
    name = after
  return f"model.{name}" if name.startswith(_BARE) else name


class _Tensor(NamedTuple):
  """Where a tensor is: the open file, its name there, and the file's path."""

  file: Any
  name: str
  path: pathlib.Path


class Folder:
  """The tensors of a folder, in one file or many, by `text_name`.

  Those of a multimodal model that are not of its text model are left out.

  Args:
    folder: Holds model.safetensors or an index of other files.
    stack: Closes the files.

  Raises:
    ValueError: a file is missing or broken, index and files do not agree, or
      two tensors have one name.
  """

  def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
    listed = _weight_map(folder)
    single = (folder / ONE).is_file()
    found: dict[str, _Tensor] = {}
    for part in [ONE] if single else sorted(set(listed.values())):
      path = folder / part
      if not path.is_file():
        raise ValueError(f"{folder / INDEX} names {part}, which is absent")
      file = stack.enter_context(opened(path))
      for name in file.keys():  # noqa: SIM118
        if listed.get(name, part) != part:
          continue  # The index says which of two files counts.
        if name in found:
          raise ValueError(
            f"{name} is in {found[name].path} and in {path}, and "
            f"{folder / INDEX} names neither"
          )
        found[name] = _Tensor(file, name, path)
    wrong = [
      f"{n} is not in {part}" for n, part in listed.items() if n not in found
    ]
    if wrong:
      raise ValueError(f"{folder / INDEX}: {'; '.join(wrong[:8])}")
    self._of = _renamed(folder, found.values())

  def types(self) -> dict[str, str]:
    """How safetensors calls the type of every tensor, such as BF16."""
    return {
      name: tensor.file.get_slice(tensor.name).get_dtype()
      for name, tensor in self._of.items()
    }

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every tensor.

    Raises:
      ValueError: a type that is not read.
    """
    found = {}
    for name, kind in self.types().items():
      file, theirs, path = self._of[name]
      if kind not in TYPES:
        raise ValueError(
          f"{path}: {theirs} is {kind}, and only {', '.join(TYPES)} are read"
        )
      shape = file.get_slice(theirs).get_shape()
      found[name] = jax.ShapeDtypeStruct(shape, TYPES[kind])
    return found

  def dtype(self, name: str) -> Any:
    """The type that a tensor is stored in."""
    file, theirs, _ = self._of[name]
    return TYPES[file.get_slice(theirs).get_dtype()]

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part of a tensor that `index` names."""
    file, theirs, _ = self._of[name]
    return file.get_slice(theirs)[index]


def _renamed(
  folder: pathlib.Path, tensors: Iterable[_Tensor]
) -> dict[str, _Tensor]:
  """The tensors of the text model, by the names that a text model has."""
  tensors = [t for t in tensors if not t.name.endswith(_DERIVED)]
  inside = any(
    _TEXT_MODEL in t.name and text_name(t.name).startswith("model.")
    for t in tensors
  )
  found: dict[str, _Tensor] = {}
  for tensor in tensors:
    name = text_name(tensor.name)
    if inside and _TEXT_MODEL not in tensor.name and name != "lm_head.weight":
      continue
    if ".lora_" in name:
      raise ValueError(
        f"{tensor.path}: {tensor.name} is part of an adapter: merge the "
        "adapters before saving, or save them as a PEFT folder of their own"
      )
    if name in found:
      raise ValueError(
        f"{folder}: {found[name].name} and {tensor.name} are both {name}"
      )
    found[name] = tensor
  return found


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
  """File of each tensor as the index says, {} where there is one file."""
  if (folder / ONE).is_file():
    return {}
  path = folder / INDEX
  if not path.is_file():
    raise ValueError(f"no {ONE} and no {INDEX} in {folder}{not_read(folder)}")
  files_lib.refuse_pointer(path)
  try:
    found = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    parts = {part: pathlib.PurePosixPath(part) for part in found.values()}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is no index ({error!r})") from error
  if not found:
    raise ValueError(f"{path} is no index (it names no tensor)")
  for part, inside in parts.items():
    if inside.is_absolute() or ".." in inside.parts:
      raise ValueError(f"{path} names {part}, which is outside of the folder")
  return found
