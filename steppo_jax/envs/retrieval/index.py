"""Documents and what finds them: the `Retriever` protocol and BM25 in memory.

`fts` keeps documents on disk.
"""

import collections
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from steppo_jax.envs.retrieval import bm25

# As in the usual implementations (rank_bm25).
K1, B = 1.5, 0.75
# Words of a query beyond these are not read: a query of 100 kB costs no more
# than a long question.
MOST_QUERY_WORDS = 128

# Function words of English, and those that ask.
STOP_WORDS = frozenset(
  str.split("""
  a about an and any are as at be been but by can could did do does for from
  give had has have how i if in into is it its list me my of on or please some
  such tell that the their them there these they this those to us was we were
  what when where which while who whose why will with would you your
""")
)


class Document(NamedTuple):
  """A paragraph, or what is known of a paper.

  Attributes:
    id: Unique in its corpus.
    title: Its title, which is searched too.
    text: The rest; may be empty.
  """

  id: str
  title: str
  text: str


class Hit(NamedTuple):
  """A document that was found, and how well it fits; higher is better."""

  id: str
  score: float


class Retriever(Protocol):
  """Finds documents. It is shared by environments in several threads."""

  def search(self, query: str, top: int) -> list[Hit]:
    """The best documents, at most `top`, best first; [] if none fits."""


class Corpus(NamedTuple):
  """Documents by id, and what finds them."""

  documents: Mapping[str, Document]
  retriever: Retriever


def query_words(query: str) -> list[str]:
  """The words of a query that are read, at most `MOST_QUERY_WORDS`."""
  # Words have at most some ten letters; whatever follows is not even split.
  return bm25.words(query[: 16 * MOST_QUERY_WORDS])[:MOST_QUERY_WORDS]


class Bm25Retriever:
  """BM25 over titles and texts, in memory.

  Args:
    documents: What is searched, in the order that breaks ties.
    stop_words: Words that count neither in documents nor in queries.
    k1: See `bm25.Bm25`.
    b: See `bm25.Bm25`.
  """

  def __init__(
    self,
    documents: Iterable[Document],
    *,
    stop_words: frozenset[str] = frozenset(),
    k1: float = K1,
    b: float = B,
  ):
    self._ids: list[str] = []
    self._stop = stop_words
    texts = []
    for document in documents:
      self._ids.append(document.id)
      texts.append(self._kept(bm25.words(f"{document.title} {document.text}")))
    self._index = bm25.Bm25(texts, k1=k1, b=b)

  def _kept(self, words):
    if not self._stop:
      return words
    return [word for word in words if word not in self._stop]

  def search(self, query: str, top: int) -> list[Hit]:
    """The best documents that share a word with the query."""
    found, scores = self._index.search(self._kept(query_words(query)), top)
    return [
      Hit(self._ids[number], score)
      for number, score in zip(found.tolist(), scores.tolist(), strict=True)
    ]


def in_memory(
  documents: Iterable[Document], *, stop_words: frozenset[str] = frozenset()
) -> Corpus:
  """A corpus that is held and searched in memory.

  Raises:
    ValueError: two documents have one id.
  """
  by_id: dict[str, Document] = {}
  for document in documents:
    if document.id in by_id:
      raise ValueError(f"two documents have the id {document.id!r}")
    by_id[document.id] = document
  retriever = Bm25Retriever(by_id.values(), stop_words=stop_words)
  return Corpus(by_id, retriever)


class Shared:
  """Makes things once a process and keeps the last few, for all threads.

  Environments by the hundred read one corpus; so do the members of a group.

  Args:
    size: How many are kept.
  """

  def __init__(self, size: int):
    self._size = size
    self._lock = threading.Lock()
    self._made: collections.OrderedDict[Hashable, Any] = (
      collections.OrderedDict()
    )

  def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
    """What was made under this key, or what `make` makes."""
    with self._lock:
      if key not in self._made:
        self._made[key] = make()
      self._made.move_to_end(key)
      while len(self._made) > self._size:
        self._made.popitem(last=False)
      return self._made[key]
