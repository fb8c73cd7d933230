"""Datasets that TFDS describes, in ArrayRecord files with checksums.

Everything is made here from what a caller yields: nothing is downloaded, and
TensorFlow is imported neither for writing nor for reading. A dataset is one
folder; it may hold further files that its examples need, and moves with them.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import rich.console
import rich.progress
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from steppo_jax import files as files_lib

DIGESTS = "sha256.json"
FACTS = "facts.json"
_CHUNK = 1 << 20

T = TypeVar("T")


class Contents(NamedTuple):
  """What a dataset is to hold.

  Attributes:
    name: Names the folder: equal names, equal contents.
    splits: Examples by split, in the order that they are to be read in.
    facts: JSON-able description, kept beside the examples.
    files: Further files that are copied into the folder, under their names.
  """

  name: str
  splits: Mapping[str, Sequence[dict[str, Any]]]
  facts: Mapping[str, Any]
  files: Sequence[pathlib.Path] = ()


class Builder(tfds.core.GeneratorBasedBuilder):
  """A TFDS builder whose examples are given; subclasses name the features."""

  VERSION = tfds.core.Version("1.0.0")
  FEATURES: ClassVar[Mapping[str, Any]]

  def __init__(
    self,
    *,
    contents: Contents,
    output: str | os.PathLike,
    advance: Callable[[], Any],
  ):
    self._contents, self._advance = contents, advance
    super().__init__(
      data_dir=str(pathlib.Path(output).absolute()),
      config=tfds.core.BuilderConfig(name=contents.name),
      file_format="array_record",
    )

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(dict(self.FEATURES)),
      # The first tasks of a split are its panel: their order is kept.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = self._contents.splits
    return {name: self._generate_examples(of) for name, of in splits.items()}

  def _generate_examples(self, examples):
    for index, example in enumerate(examples):
      yield index, example
      self._advance()


@contextlib.contextmanager
def progress(title: str, total: int, shown: bool = True):
  """One bar on the terminal in place of what TFDS says of downloads."""
  columns = rich.progress.Progress.get_default_columns()
  log = logging.getLogger("absl")
  level = log.level
  log.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with (
      rich.progress.Progress(
        *columns,
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
        disable=not shown,
      ) as bars,
      contextlib.redirect_stdout(io.StringIO()),
    ):
      bar = bars.add_task(title, total=total)
      yield lambda: bars.advance(bar)
  finally:
    log.setLevel(level)


def folder_of(
  builder: type[Builder], output: str | os.PathLike, name: str
) -> pathlib.Path:
  """Where `write` puts a dataset."""
  root = pathlib.Path(output).absolute()
  return root / builder.name / name / str(builder.VERSION)


def write(
  builder: type[Builder],
  output: str | os.PathLike,
  contents: Contents,
  *,
  bar: bool = True,
) -> pathlib.Path:
  """Makes a dataset, or checks the one of that name that is there.

  A dataset whose writing was broken off has no checksums and is made anew.

  Args:
    builder: Names the features of an example.
    output: Folder that holds datasets; it is made.
    contents: What to write. Examples are only asked for if they are needed.
    bar: Whether progress is shown on the terminal.

  Returns:
    The dataset's folder under `output`.

  Raises:
    ValueError: `output` is a file, or a split is empty.
    RuntimeError: the dataset that is there is broken.
  """
  folder = folder_of(builder, output, contents.name)
  if pathlib.Path(output).is_file():
    raise ValueError(f"output must be a folder, {output} is a file")
  if (folder / DIGESTS).exists():
    verify(folder)
    return folder
  if folder.exists():
    shutil.rmtree(folder)
  sizes = [len(examples) for examples in contents.splits.values()]
  if not sizes or 0 in sizes:
    raise ValueError(f"{contents.name}: a split is empty, nothing to write")
  with progress(contents.name, sum(sizes), bar) as advance:
    builder(
      contents=contents, output=output, advance=advance
    ).download_and_prepare()
  for path in contents.files:
    shutil.copyfile(path, folder / path.name)
  (folder / FACTS).write_text(json.dumps(dict(contents.facts), indent=1))
  for split, examples in contents.splits.items():
    found = len(_source(folder, split))
    if found != len(examples):
      raise RuntimeError(f"{folder}: {split} holds {found} of {len(examples)}")
  seal(folder)
  return folder


def seal(folder: pathlib.Path) -> None:
  """Writes down the checksums of a folder's files: the dataset is complete."""
  (folder / DIGESTS).write_text(json.dumps(_digests(folder), indent=1))


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal."""
  found = hashlib.sha256()
  with open(path, "rb") as file:
    while chunk := file.read(_CHUNK):
      found.update(chunk)
  return found.hexdigest()


def _digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    path.name: digest(path)
    for path in sorted(folder.iterdir())
    if path.name != DIGESTS
  }


def verify(folder: str | os.PathLike) -> None:
  """Checks that every file is as it was written.

  Raises:
    ValueError: the folder is not a dataset of `write`.
    RuntimeError: a file is broken or missing; the message names it.
  """
  folder = pathlib.Path(folder)
  if not (folder / DIGESTS).is_file():
    raise ValueError(
      f"{folder} is not a prepared dataset (it has no {DIGESTS}): give the "
      "folder that `python -m steppo_jax data` printed"
    )
  try:
    expected = dict(json.loads((folder / DIGESTS).read_text()))
  except (ValueError, TypeError):
    expected = {DIGESTS: "readable"}
  found = _digests(folder)
  wrong = [name for name in expected if expected[name] != found.get(name)]
  if wrong:
    raise RuntimeError(
      f"broken or missing in {folder}: {', '.join(wrong)}; remove that folder "
      "and make it again with `python -m steppo_jax data`"
    )


def facts(folder: str | os.PathLike) -> dict[str, Any]:
  """What `Contents.facts` said; the files are not checked.

  Raises:
    ValueError: the folder is not a dataset, or its facts cannot be read.
  """
  path = pathlib.Path(folder) / FACTS
  if not path.is_file():
    raise ValueError(
      f"{folder} is not a prepared dataset (it has no {FACTS}): give the "
      "folder that `python -m steppo_jax data` printed"
    )
  try:
    return dict(json.loads(files_lib.text_of(path)))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is broken ({error})") from error


class Examples(Sequence, Generic[T]):
  """Examples of one split, read from the disk at random.

  Args:
    source: TFDS' data source.
    read: Makes an element of the raw example.
  """

  def __init__(self, source, read: Callable[[dict[str, Any]], T]):
    self._source, self._read = source, read

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> T:
    size = len(self)
    if not -size <= index < size:
      raise IndexError(f"example {index} of {size}")
    return self._read(self._source[int(index) % size])

  def __iter__(self) -> Iterator[T]:
    return (self[index] for index in range(len(self)))


def read(
  folder: str | os.PathLike, split: str, make: Callable[[dict[str, Any]], T]
) -> Examples[T]:
  """Opens a split after checking every file.

  Raises:
    ValueError: no such dataset or split.
    RuntimeError: a file is broken.
  """
  verify(folder)
  return Examples(_source(folder, split), make)


def _source(folder: str | os.PathLike, split: str):
  builder = tfds.builder_from_directory(str(folder))
  if split not in builder.info.splits:
    known = ", ".join(builder.info.splits)
    raise ValueError(f"{folder} has no split {split!r}; it has {known}")
  # TFDS believes its own note of how many there are, and a file whose writer
  # was not closed reads as an empty one.
  of = builder.info.splits[split]
  found = sum(_records(path) for path in of.filepaths)
  if found != of.num_examples:
    raise RuntimeError(
      f"{folder}: {split} holds {found} of {of.num_examples} examples; remove "
      "that folder and make it again"
    )
  return builder.as_data_source(split)


def _records(path: os.PathLike) -> int:
  reader = array_record_module.ArrayRecordReader(str(path))
  found = reader.num_records()
  if found:  # An empty one raises an error as it is closed.
    reader.close()
  return found
