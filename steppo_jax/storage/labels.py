"""What people said of the episodes of a run: keep, exclude, a note.

`labels.jsonl` of a run folder holds a line for every time that somebody said
something; of an episode that has several the last one counts:

    {"uid": "3-0-1", "split": "train", "verdict": "exclude", "note": "loops"}

This module imports no JAX.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

from steppo_jax import files

FILE_NAME = "labels.jsonl"
VERDICTS = ("", "keep", "exclude")
MOST_NOTE = 10_000

Verdict = Literal["", "keep", "exclude"]


class Label(NamedTuple):
  """What was said of an episode.

  Attributes:
    verdict: "keep", "exclude", or "" for neither.
    note: Any text.
  """

  verdict: Verdict
  note: str


def checked(verdict: object, note: object) -> Label:
  """A label of what somebody sent.

  Raises:
    ValueError: the verdict is none, or the note is no text or too long.
  """
  if not isinstance(verdict, str) or verdict not in VERDICTS:
    raise ValueError(
      f"verdict={verdict!r} is none of {', '.join(VERDICTS[1:])}"
    )
  if not isinstance(note, str) or len(note) > MOST_NOTE:
    raise ValueError(f"a note is a text of at most {MOST_NOTE} characters")
  return Label(verdict, note)


def add(
  run: str | os.PathLike, uid: str, label: Label, *, split: str = "train"
) -> None:
  """Writes down what was said; returns when it is on the disk.

  Args:
    run: The run folder.
    uid: Of the episode.
    label: What is said of it; it replaces what was said before.
    split: Of the episode's task.

  Raises:
    RuntimeError: the file cannot be written.
  """
  path = pathlib.Path(run) / FILE_NAME
  line = {"uid": uid, "split": split, **label._asdict()}
  try:
    # A line that a kill has cut is ended first, and then passed over.
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("ab", buffering=0) as file:
      text = b"\n" * torn + json.dumps(line).encode() + b"\n"
      files.write_all(file, text)
      os.fsync(file.fileno())
  except OSError as error:
    raise RuntimeError(
      f"cannot write {path}: {error.strerror}; labels need a run folder that "
      "can be written"
    ) from error


def read(run: str | os.PathLike) -> Mapping[tuple[str, str], Label]:
  """The labels of a run by split and uid; lines that a kill cut are left out.

  Raises:
    ValueError: the file cannot be read, or a line is no label.
  """
  path = pathlib.Path(run) / FILE_NAME
  found: dict[tuple[str, str], Label] = {}
  if not path.is_file():
    return found
  for where, line in files.read_lines(path, cut="any"):
    try:
      label = checked(line.get("verdict"), line.get("note"))
      found[str(line.get("split", "train")), str(line["uid"])] = label
    except (ValueError, KeyError) as error:
      raise ValueError(f"{where}: no label of an episode ({error})") from error
  return found


def excluded(run: str | os.PathLike, split: str = "train") -> frozenset[str]:
  """Names of the episodes of a split that somebody excluded."""
  return frozenset(
    uid
    for (of, uid), label in read(run).items()
    if of == split and label.verdict == "exclude"
  )
