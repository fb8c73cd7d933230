"""What the files and arrays of a checkpoint must be, written when they are.

Orbax notices a file that is missing or cut short, but not a flipped bit in the
data of an array. A manifest lists every file with its digest and every shard of
every array with that of its bytes; a folder without one is not finished.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from steppo_jax import files as files_lib
from steppo_jax.processes import kill_points

NAME = "manifest.json"

_VERSION = 1
_CHUNK = 1 << 20


class Missing(ValueError):
  """A checkpoint has no manifest: it was not finished."""


def digest_shards(named: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """Digests of what this process holds of every array.

  Args:
    named: Arrays by name, JAX or NumPy.

  Returns:
    For each name one {"index": [[start, stop], ...], "digest": hexadecimal} a
    shard; shards that several devices hold count once.
  """
  found = {}
  for name, leaf in named.items():
    if isinstance(leaf, jax.Array):
      shards = [
        (shard.index, shard.data)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
      ]
    else:
      leaf = np.asarray(leaf)
      shards = [((slice(None),) * leaf.ndim, leaf)]
    found[name] = [
      {"index": _bounds(index, leaf.shape), "digest": _digest(data)}
      for index, data in shards
    ]
  return found


def joined(parts: Sequence[dict[str, list]]) -> dict[str, list]:
  """The digests of all processes, from those of each."""
  names = dict.fromkeys(name for part in parts for name in part)
  return {
    name: [shard for part in parts for shard in part.get(name, ())]
    for name in names
  }


def _bounds(index, shape) -> list[list[int]]:
  return [
    list(part.indices(size)[:2])
    for part, size in zip(index, shape, strict=True)
  ]


def _digest(data) -> str:
  data = np.ascontiguousarray(np.asarray(data))
  # Types such as bfloat16 have no buffer of their own.
  return hashlib.blake2b(data.view(np.uint8).data, digest_size=16).hexdigest()


def _digest_file(path: pathlib.Path) -> str:
  found = hashlib.blake2b(digest_size=16)
  with path.open("rb") as file:
    while chunk := file.read(_CHUNK):
      found.update(chunk)
  return found.hexdigest()


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  return {
    str(path.relative_to(folder)): path
    for path in sorted(folder.rglob("*"))
    if not path.is_dir() or path.is_symlink()
    if path.name not in (NAME, f"{NAME}.tmp")
  }


def write(
  folder: pathlib.Path, shards: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
  """Finishes a checkpoint: the manifest appears at once, or not at all.

  Args:
    folder: The checkpoint, with all its files.
    shards: From `digest_shards`.
    facts: What else is to be known without reading the arrays, JSON-able.

  Raises:
    OSError: a file cannot be read, or the manifest not written.
  """
  files = {name: _digest_file(path) for name, path in _files(folder).items()}
  text = json.dumps(
    {"version": _VERSION, "files": files, "shards": shards, "facts": facts}
  )
  with files_lib.replacing(folder / NAME) as new:
    new.write_text(text)
    kill_points.passed("manifest: written")
  kill_points.passed("manifest: in place")
  files_lib.sync_folder(folder.parent)


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of a checkpoint.

  Raises:
    Missing: there is none.
    ValueError: it is no manifest, or of another version.
  """
  try:
    data = json.loads((folder / NAME).read_bytes())
  except FileNotFoundError:
    raise Missing(f"it has no {NAME}") from None
  except (OSError, ValueError) as error:
    raise ValueError(f"{NAME} cannot be read: {error}") from error
  if not isinstance(data, dict) or data.get("version") != _VERSION:
    raise ValueError(f"{NAME} is not of version {_VERSION}")
  if not all(isinstance(data.get(k), dict) for k in ("files", "shards",
                                                     "facts")):  # fmt: skip
    raise ValueError(f"{NAME} is not a manifest")
  return data


def check_files(folder: pathlib.Path) -> dict[str, Any]:
  """Reads every file of a checkpoint; returns its manifest.

  Raises:
    Missing: there is no manifest.
    ValueError: a file is missing, changed, a link or not of the checkpoint.
  """
  wanted = read(folder)["files"]
  present = _files(folder)
  for name, digest in wanted.items():
    path = present.pop(name, None)
    if path is None:
      raise ValueError(f"{name} is missing")
    if path.is_symlink() or not path.is_file():
      raise ValueError(f"{name} is not a file")
    if _digest_file(path) != digest:
      raise ValueError(f"{name} has changed")
  if present:
    raise ValueError(f"{next(iter(present))} does not belong to it")
  return read(folder)


def check_shards(shards: Mapping[str, Any], named: Mapping[str, Any]) -> None:
  """Compares arrays that were read with those that were saved.

  Shards that no device of this process holds as a whole are left to those that
  do.

  Args:
    shards: From `digest_shards`, when they were saved.
    named: Arrays by name, on any devices.

  Raises:
    ValueError: an array has other bytes; it is named.
  """
  for name, saved in shards.items():
    leaf = named[name]
    parts = [([[0, size] for size in np.shape(leaf)], leaf)]
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      parts = [
        (_bounds(s.index, leaf.shape), s.data) for s in leaf.addressable_shards
      ]
    for shard in saved:
      data = _part(parts, shard["index"])
      if data is not None and _digest(data) != shard["digest"]:
        raise ValueError(f"{name} has other numbers than were saved")


def _part(parts, index):
  """The numbers at an index, None where no part holds all of them."""
  for bounds, data in parts:
    inside = all(
      low <= start and stop <= high
      for (low, high), (start, stop) in zip(bounds, index, strict=True)
    )
    if inside:
      picked = tuple(
        slice(start - low, stop - low)
        for (low, _), (start, stop) in zip(bounds, index, strict=True)
      )
      return np.asarray(data)[picked]
  return None


def first(error) -> str:
  """The first line of an error, cut to a length that can be read."""
  return str(error).strip().split("\n")[0][:200]


class Broken(RuntimeError):
  """A checkpoint that cannot be used."""

  def __init__(self, story: str, unfinished: bool = False):
    super().__init__(story)
    self.unfinished = unfinished


def story(path: pathlib.Path, error, state: str = "is broken") -> str:
  """One line about a checkpoint and its error."""
  kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
  return f"the checkpoint {path} {state} ({kind}{first(error)})"


def find(path: pathlib.Path) -> Broken | None:
  """What is wrong with the files of a checkpoint, read one by one."""
  if path.is_symlink():
    return Broken(story(path, "it is a link"))
  try:
    check_files(path)
  except Missing as error:
    return Broken(story(path, error, "was not finished"), unfinished=True)
  except (ValueError, OSError) as error:
    return Broken(story(path, error))
  return None
