"""Ranks documents by the words that they share with a query (BM25).

    score(q, d) = Σ_w∈q idf(w) · f(w, d) (k₁ + 1) / (f(w, d) + k₁ K(d))
    K(d) = 1 - b + b |d| / mean |d|
    idf(w) = ln(1 + (N - n(w) + ½) / (n(w) + ½))

f(w, d) counts the word w in the document d, n(w) the documents that hold it, N
all documents. A word that a query repeats counts as often as it is repeated.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework:
BM25 and Beyond", with the idf that is never negative (as in Lucene).
"""

import collections
import re
from collections.abc import Iterable, Sequence

import numpy as np

_WORD = re.compile(r"\w+")
# Words that at least this share of all documents hold have a row of their own:
# adding a row to a row is faster than adding to scattered places, and it takes
# at most 1 / (2 * share) times the memory of the places.
_DENSE_SHARE = 1 / 16


def words(text: str) -> list[str]:
  """The words of a text: runs of letters, digits and _, in lower case."""
  return _WORD.findall(text.lower())


class Bm25:
  """An index over documents; it never changes, so threads may share it.

  Args:
    documents: The words of each document. A document may be empty.
    k1: How fast a repeated word saturates, at least 0.
    b: How much long documents are discounted, in [0, 1].

  Raises:
    ValueError: k1 or b is out of range, or a document is a string instead of a
      sequence of words.
  """

  def __init__(
    self, documents: Sequence[Sequence[str]], *, k1: float, b: float
  ):
    if not k1 >= 0.0:
      raise ValueError(f"k1 must be at least 0, got {k1}")
    if not 0.0 <= b <= 1.0:
      raise ValueError(f"b must be in [0, 1], got {b}")
    self._id: dict[str, int] = {}
    word_ids, doc_ids, lengths = [], [], []
    for number, document in enumerate(documents):
      if isinstance(document, str):
        raise ValueError(
          f"document {number} is a string; give its words, such as words(text)"
        )
      ids = [self._id.setdefault(w, len(self._id)) for w in document]
      word_ids.append(np.array(ids, np.int64))
      doc_ids.append(np.full(len(ids), number, np.int64))
      lengths.append(len(ids))
    self._lengths = np.array(lengths, np.float64)
    self._build(_joined(word_ids), _joined(doc_ids), k1, b)

  def _build(self, word_ids, doc_ids, k1, b):
    """Fills the inverted index; what a posting adds is computed once."""
    num_docs, num_words = len(self._lengths), len(self._id)
    # Sorted by word, then by document: the columns of a CSR matrix.
    pairs, counts = np.unique(
      word_ids * max(num_docs, 1) + doc_ids, return_counts=True
    )
    word_of, doc_of = np.divmod(pairs, max(num_docs, 1))
    holders = np.bincount(word_of, minlength=num_words)
    self._start = np.concatenate([[0], np.cumsum(holders)])
    self._docs = doc_of.astype(np.int32)
    idf = np.log1p((num_docs - holders + 0.5) / (holders + 0.5))
    mean = self._lengths.mean() if num_docs else 0.0
    norm = 1.0 - b + b * self._lengths / max(mean, 1e-9)
    gain = counts * (k1 + 1.0) / (counts + k1 * norm[doc_of])
    self._gains = (idf[word_of] * gain).astype(np.float32)
    self._dense = {}
    for word in np.flatnonzero(holders >= max(_DENSE_SHARE * num_docs, 2)):
      docs, gains = self._postings(word)
      row = np.zeros(num_docs, np.float32)
      row[docs] = gains
      self._dense[int(word)] = row

  def _postings(self, word):
    part = slice(self._start[word], self._start[word + 1])
    return self._docs[part], self._gains[part]

  def __len__(self) -> int:
    """Number of documents."""
    return len(self._lengths)

  def scores(self, query: Iterable[str]) -> np.ndarray:
    """Score of every document: [N] float32, 0 where no word is shared.

    Args:
      query: Words; unknown ones add nothing.
    """
    counts = collections.Counter(query)
    total = np.zeros(len(self), np.float32)
    for text, count in counts.items():
      word = self._id.get(text)
      if word is None:
        continue
      row = self._dense.get(word)
      if row is not None:
        total += row if count == 1 else row * np.float32(count)
        continue
      docs, gains = self._postings(word)
      total[docs] += gains if count == 1 else gains * np.float32(count)
    return total

  def search(
    self, query: Iterable[str], top: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The best documents; a document that shares no word is never among them.

    Args:
      query: Words; unknown ones add nothing.
      top: Most documents to return, at least 1.

    Returns:
      Numbers of the documents [K] int64 and their scores [K] float32, best
      first, the lower number first where scores are equal; K <= top.

    Raises:
      ValueError: top is below 1, or the query is a string.
    """
    if top < 1:
      raise ValueError(f"top must be at least 1, got {top}")
    if isinstance(query, str):
      raise ValueError("query is a string; give its words, such as words(text)")
    scores = self.scores(query)
    if top < len(scores):
      least = np.partition(scores, len(scores) - top)[len(scores) - top]
      ids = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    else:
      ids = np.flatnonzero(scores > 0)
    ids = ids[np.argsort(-scores[ids], kind="stable")][:top]
    return ids, scores[ids]


def _joined(parts):
  return np.concatenate(parts) if parts else np.zeros(0, np.int64)
