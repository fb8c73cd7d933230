"""Ranks documents by vectors that were computed before, with `faiss`.

The extra `dense` installs it; nothing else needs it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from steppo_jax.envs.retrieval import index


class DenseRetriever:
  """Finds the documents with the largest inner product with the query.

  Args:
    ids: Id of each document.
    vectors: [N, D] floating point, one row a document.
    encode: Gives the vector [D] of a query, or a table of the vectors of the
      queries that will come; one that is not in the table finds nothing.

  Raises:
    ValueError: ids and vectors do not fit together or are not finite.
    RuntimeError: `faiss` is not installed.
  """

  def __init__(
    self,
    ids: Sequence[str],
    vectors: np.ndarray,
    encode: Callable[[str], np.ndarray] | Mapping[str, np.ndarray],
  ):
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(ids):
      raise ValueError(
        f"vectors must be [{len(ids)}, D], a row for every id, got "
        f"{list(vectors.shape)}"
      )
    if not np.isfinite(vectors).all():
      raise ValueError("vectors must be finite")
    try:
      import faiss
    except ImportError as error:
      raise RuntimeError(
        "dense retrieval needs faiss: pip install 'steppo_jax[dense]'"
      ) from error
    self._ids = list(ids)
    self._encode = encode.get if isinstance(encode, Mapping) else encode
    self._index = faiss.IndexFlatIP(vectors.shape[1])
    self._index.add(vectors)

  def search(self, query: str, top: int) -> list[index.Hit]:
    """The `top` documents with the largest inner products.

    Raises:
      ValueError: top is below 1, or the query's vector has another length.
    """
    if top < 1:
      raise ValueError(f"top must be at least 1, got {top}")
    vector = self._encode(query)
    if vector is None:
      return []
    vector = np.asarray(vector, np.float32).reshape(1, -1)
    if vector.shape[1] != self._index.d:
      raise ValueError(
        f"the query's vector has {vector.shape[1]} numbers, the documents' "
        f"have {self._index.d}"
      )
    scores, numbers = self._index.search(vector, top)
    return [
      index.Hit(self._ids[number], score)
      for number, score in zip(
        numbers[0].tolist(), scores[0].tolist(), strict=True
      )
      if number >= 0
    ]
