"""Opens GGUF files through the package `gguf`; imports no JAX."""

import functools
import os
import pathlib
from typing import Any


def open_reader(path: str | os.PathLike):
  """The reader of one file, whose parts were all found to be there.

  Parsing takes seconds: the last file is kept until `forget`.

  Raises:
    ValueError: there is no such file, or it is cut short or no GGUF.
    RuntimeError: the package gguf is missing.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"no GGUF file at {path}")
  stat = path.stat()
  return _open(path.absolute(), stat.st_size, stat.st_mtime_ns)


def forget() -> None:
  """Lets go of the last file."""
  _open.cache_clear()


@functools.lru_cache(maxsize=1)
def _open(path: pathlib.Path, size: int, modified: int):
  del modified  # of another file under this name
  try:
    import gguf
  except ImportError as error:
    raise RuntimeError(
      "GGUF files are read by the package gguf: pip install 'steppo_jax[gguf]'"
    ) from error
  try:
    reader = gguf.GGUFReader(path)
    end = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
    if end > size:
      raise ValueError(f"its tensors end at byte {end}")
  except (ValueError, IndexError, KeyError, OverflowError) as error:
    raise ValueError(
      f"{path} ({size} bytes) is cut short or is not a GGUF file ({error}); "
      "copy it again"
    ) from error
  return reader


def rows(reader) -> int | None:
  """Rows of the embedding, which are the model's ids; None without one."""
  for tensor in reader.tensors:
    if tensor.name == "token_embd.weight":
      return int(tensor.shape[-1])  # The file names the width first.
  return None


def value(reader, key: str, default: Any = None) -> Any:
  """What the file says under a key, as Python's own types."""
  return reader.fields[key].contents() if key in reader.fields else default
