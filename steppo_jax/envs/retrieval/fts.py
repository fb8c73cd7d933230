"""A corpus on disk: SQLite's full-text index, ranked by its BM25."""

import contextlib
import os
import pathlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping

from steppo_jax import files
from steppo_jax.envs.retrieval import bm25
from steppo_jax.envs.retrieval import index as retrieval_index

_FORMAT = 1
_TABLES = """
create table about (format integer, documents integer);
create table documents (
  number integer primary key, id text unique, title text, text text);
create virtual table words using fts5 (
  body, content='', tokenize='unicode61 remove_diacritics 0');
"""
_BEST = """
select documents.id, -found.rank from (
  select rowid, rank from words where words match ? order by rank limit ?
) as found join documents on documents.number = found.rowid
order by found.rank, documents.number
"""


def build(
  path: str | pathlib.Path, documents: Iterable[retrieval_index.Document]
) -> int:
  """Writes an index file; one that is there is replaced when all is written.

  Args:
    path: The file.
    documents: Read once, one at a time.

  Returns:
    Number of documents.

  Raises:
    ValueError: two documents have one id, or the file cannot be written.
  """
  path = pathlib.Path(path)
  count = 0
  try:
    with (
      files.replacing(path, ending=f".{os.getpid()}.draft") as draft,
      contextlib.closing(sqlite3.connect(draft)) as file,
    ):
      # A draft that is cut off is thrown away, so nothing has to be safe.
      file.execute("pragma synchronous = off")
      file.execute("pragma journal_mode = off")
      file.executescript(_TABLES)
      for count, document in enumerate(documents, 1):
        _add(file, count, document)
      file.execute("insert into about values (?, ?)", (_FORMAT, count))
      file.commit()
  except (sqlite3.Error, OSError) as error:
    raise ValueError(f"index {path} cannot be written ({error})") from error
  return count


def _add(file, number, document):
  body = " ".join(bm25.words(f"{document.title} {document.text}"))
  try:
    file.execute("insert into documents values (?, ?, ?, ?)",
                 (number, *document))  # fmt: skip
  except sqlite3.IntegrityError as error:
    raise ValueError(f"two documents have the id {document.id!r}") from error
  file.execute("insert into words (rowid, body) values (?, ?)", (number, body))


def open_corpus(path: str | pathlib.Path) -> retrieval_index.Corpus:
  """The corpus of an index file, which is only read.

  Raises:
    ValueError: the file is missing or no index of `build`.
  """
  index = FtsIndex(path)
  return retrieval_index.Corpus(FtsDocuments(index), index)


class FtsIndex:
  """Finds documents in an index file; a `retrieval.index.Retriever`.

  Scores are SQLite's BM25 with k1 = 1.2 and b = 0.75. Every thread has a
  connection of its own.

  Args:
    path: A file that `build` wrote.

  Raises:
    ValueError: the file is missing or no index of `build`.
  """

  def __init__(self, path: str | pathlib.Path):
    self._path = pathlib.Path(path).absolute()
    self._local = threading.local()
    if not self._path.is_file():
      raise ValueError(f"index {self._path} is missing; build it first")
    try:
      rows = self.rows("select format, documents from about")
    except RuntimeError as error:
      raise ValueError(
        f"{self._path} is no search index ({error}); build it anew"
      ) from error
    if len(rows) != 1 or rows[0][0] != _FORMAT:
      raise ValueError(f"index {self._path} has another format; build it anew")
    self.size: int = rows[0][1]

  def rows(self, sql: str, values: tuple = ()) -> list[tuple]:
    """Runs one query.

    Raises:
      RuntimeError: the file cannot be read any more.
    """
    try:
      file = getattr(self._local, "file", None)
      if file is None:
        name = f"{self._path.as_uri()}?mode=ro"
        file = self._local.file = sqlite3.connect(name, uri=True)
      return file.execute(sql, values).fetchall()
    except sqlite3.Error as error:
      raise RuntimeError(f"index {self._path}: {error}") from error

  def search(self, query: str, top: int) -> list[retrieval_index.Hit]:
    """The best documents that share a word with the query."""
    if top < 1:
      raise ValueError(f"top must be at least 1, got {top}")
    # Quoted words are plain words: nothing in a query is FTS5 syntax. Function
    # words would rank every document there is.
    read = dict.fromkeys(retrieval_index.query_words(query))
    words = [word for word in read if word not in retrieval_index.STOP_WORDS]
    if not words:
      return []
    match = " OR ".join(f'"{word}"' for word in words)
    return [retrieval_index.Hit(*row) for row in self.rows(_BEST, (match, top))]


class FtsDocuments(Mapping[str, retrieval_index.Document]):
  """The documents of an index file by id, read when they are asked for."""

  def __init__(self, index: FtsIndex):
    self._index = index

  def __getitem__(self, id_: str) -> retrieval_index.Document:
    rows = self._index.rows(
      "select id, title, text from documents where id = ?", (id_,)
    )
    if not rows:
      raise KeyError(id_)
    return retrieval_index.Document(*rows[0])

  def __len__(self) -> int:
    return self._index.size

  def __iter__(self) -> Iterator[str]:
    for (id_,) in self._index.rows("select id from documents order by number"):
      yield id_
