"""Files that are whole or not there, and files of JSON, packed or not.

Every error of a reader names the file, and the line where there are lines.
"""

import contextlib
import gzip
import io
import json
import lzma
import os
import pathlib
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, *, ending: str = ".tmp"
) -> Iterator[pathlib.Path]:
  """Has a file written beside another one, whose name it then takes at once.

  Whoever reads `path` finds the old file or the new one, whole; after a failure
  the old one. When this returns, the new one is on the disk.

  Args:
    path: The name that the file takes.
    ending: Follows that name while the file is written. Writers that may work
      on one file at the same time need endings of their own.

  Yields:
    The path to write to.

  Raises:
    OSError: the file cannot be written.
  """
  path = pathlib.Path(path)
  new = path.with_name(path.name + ending)
  new.unlink(missing_ok=True)  # Of a process that was killed.
  new.touch()
  mode = stat.S_IMODE(new.stat().st_mode)
  try:
    yield new
    # Some writers (safetensors 0.8.0) let nobody but the owner read.
    new.chmod(mode)
    _sync(new)
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)
  sync_folder(path.parent)


def replace(path: str | os.PathLike, text: str) -> None:
  """Writes a text file whole, or leaves the old one; see `replacing`."""
  with replacing(path) as new:
    new.write_text(text, encoding="utf-8")


def write_all(file: io.FileIO, data: bytes) -> None:
  """Writes all of some bytes to an unbuffered file.

  A disk that is nearly full takes a part of them without an error: the next
  write has it.

  Raises:
    OSError: not all can be written; it names the file.
  """
  rest = memoryview(data)
  try:
    while rest:
      rest = rest[file.write(rest) :]
  except OSError as error:
    raise OSError(error.errno, error.strerror, file.name) from error


def sync_folder(folder: pathlib.Path) -> None:
  """Returns when the names of a folder's files are on the disk."""
  _sync(folder)


def _sync(path):
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def refuse_pointer(path: pathlib.Path) -> None:
  """Refuses a file that only says which file belongs in its place.

  A clone of a repository with Git LFS has such texts of some 130 bytes where
  its large files were not fetched.

  Raises:
    ValueError: it is one.
  """
  with open(path, "rb") as file:
    if file.read(32).startswith(b"version https://git-lfs"):
      raise ValueError(
        f"{path} is a pointer of Git LFS and not the file itself: fetch it "
        "with `git lfs pull`"
      )


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """The object that a file holds.

  Raises:
    ValueError: it is not JSON, or no object; the file is named.
  """
  refuse_pointer(path)
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error})") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} holds no JSON object")
  return found


_OPEN = {".gz": gzip.open, ".xz": lzma.open}
_ENDINGS = ("", ".gz", ".xz")


class Line(NamedTuple):
  """One record of a file.

  Attributes:
    where: File and line, for errors.
    record: The object that the line holds.
  """

  where: str
  record: dict[str, Any]


def find(folder: str | pathlib.Path, *names: str) -> pathlib.Path | None:
  """The first file of these names in a folder, as it is or packed.

  Raises:
    ValueError: there is no such folder.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise ValueError(f"data_dir {str(folder)!r} is not a folder")
  for name in names:
    for ending in _ENDINGS:
      if (folder / (name + ending)).is_file():
        return folder / (name + ending)
  return None


def needed(folder: str | pathlib.Path, *names: str) -> pathlib.Path:
  """Like `find`, but a folder without the file is an error.

  Raises:
    ValueError: there is no such folder or file.
  """
  found = find(folder, *names)
  if found is None:
    wanted = " or ".join(names)
    raise ValueError(
      f"data_dir {str(folder)!r} has no {wanted} (as it is, .gz or .xz)"
    )
  return found


def text_of(path: str | pathlib.Path) -> str:
  """All of a text file, packed or not.

  Raises:
    ValueError: the file is missing, broken or not UTF-8.
  """
  return "".join(_lines(pathlib.Path(path)))


def read_lines(
  path: str | os.PathLike, *, cut: Literal["none", "last", "any"] = "none"
) -> Iterator[Line]:
  """The objects of a file of JSON lines; empty lines are passed over.

  Args:
    path: The file; `.gz` and `.xz` are unpacked.
    cut: Which line a kill may have cut, and is then passed over: "last" a last
      one without an end of line, "any" any, as where the writer that comes next
      ends the line.

  Raises:
    ValueError: the file is missing, broken or not UTF-8, or a line is not a
      JSON object.
  """
  path = pathlib.Path(path)
  for number, text in enumerate(_lines(path), 1):
    if not text.strip():
      continue
    where = f"{path}, line {number}"
    try:
      record = json.loads(text)
    except (ValueError, RecursionError) as error:
      if cut == "any" or (cut == "last" and not text.endswith("\n")):
        continue
      raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
      raise ValueError(f"{where}: expected a JSON object")
    yield Line(where, record)


def _lines(path):
  opener = _OPEN.get(path.suffix, open)
  try:
    with opener(path, "rt", encoding="utf-8") as lines:
      yield from lines
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 ({error.reason})") from error
  except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
    raise ValueError(
      f"{path} is no whole {path.suffix} file ({error}); get it again"
    ) from error
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error})") from error


def get_text(
  record: Mapping[str, Any], key: str, where: str, *, empty: bool = False
) -> str:
  """A string of a record.

  Args:
    record: The record.
    key: Its key.
    where: Named in errors.
    empty: Whether nothing but white space will do, and the key may be missing.

  Raises:
    ValueError: there is no such string, or it cannot be written as UTF-8.
  """
  value = record.get(key, "" if empty else None)
  if not isinstance(value, str) or not (empty or value.strip()):
    raise ValueError(f"{where}: {key!r} must be a string, got {value!r:.60}")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    # Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    raise ValueError(f"{where}: {key!r} is not valid Unicode") from error
  return value


def get_texts(
  record: Mapping[str, Any], key: str, where: str, *, least: int
) -> Sequence[str]:
  """A list of strings of a record, of at least so many.

  Raises:
    ValueError: there is no such list.
  """
  values = record.get(key)
  if not isinstance(values, list) or len(values) < least:
    raise ValueError(
      f"{where}: {key!r} must be a list of at least {least} strings"
    )
  return [
    get_text({key: value}, key, where, empty=not least) for value in values
  ]
