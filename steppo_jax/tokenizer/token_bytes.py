"""What every tokenizer does with ids and bytes."""

from collections.abc import Sequence

import numpy as np


def checked(ids: Sequence[int] | np.ndarray, vocab_size: int) -> list[int]:
  """Ids as a list, all of them in the vocabulary.

  Raises:
    ValueError: an id is not; it is named.
  """
  flat = np.asarray(ids, np.int64).reshape(-1).tolist()
  for index in flat:
    if not 0 <= index < vocab_size:
      raise ValueError(
        f"token id {index} is outside the vocabulary of {vocab_size}; "
        "decode with the tokenizer that the ids were made with"
      )
  return flat


def text_of(raw: bytes) -> str:
  """Text of bytes; lone surrogates come back, other faults are U+FFFD."""
  for errors in ("strict", "surrogatepass"):
    try:
      return raw.decode("utf-8", errors)
    except UnicodeDecodeError:
      continue
  return raw.decode("utf-8", "replace")
