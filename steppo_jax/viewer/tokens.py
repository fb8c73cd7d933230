"""Token ids as the texts of single tokens, control tokens included.

Text that is joined and encoded again would have other tokens: everything that
is shown is made of the ids that the policy read and wrote.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steppo_jax import types

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Shown(NamedTuple):
  """Tokens as they are shown.

  Attributes:
    texts: One a token. Where several tokens spell one character, the last of
      them has it and the others are empty.
    controls: Places of control tokens, whose texts are their spellings, and of
      ids that stand for nothing.
  """

  texts: list[str]
  controls: list[int]


class Pieces:
  """Texts of tokens by a tokenizer; without one, they are their numbers.

  Args:
    tokenizer: That of the run, None where it could not be loaded.
  """

  def __init__(self, tokenizer: types.Tokenizer | None):
    self._tokenizer = tokenizer
    self._known: dict[int, str] = {}
    self._controls: dict[int, str] = {}
    if tokenizer is not None:
      self._line = tokenizer.encode("\n")
      named = getattr(tokenizer, "controls", {})
      self._controls = {
        tokenizer.pad_id: "<pad>",
        tokenizer.bos_id: "<bos>",
        tokenizer.end_of_turn_id: "<end_of_turn>",
      } | {index: text for text, index in named.items()}

  def shown(self, ids: Sequence[int] | np.ndarray) -> Shown:
    """Texts of some tokens; joined, without controls, they are `decode`'s."""
    texts, controls = [], []
    pending: list[int] = []
    for index in np.asarray(ids, np.int64).reshape(-1).tolist():
      control = self._control(index)
      if control is not None:
        texts += self._spelt(pending)
        pending = []
        controls.append(len(texts))
        texts.append(control)
        continue
      text = self._alone(index)
      if _BROKEN not in text:
        texts += self._spelt(pending)
        pending = []
        texts.append(text)
        continue
      # Bytes of a character that other tokens go on with.
      pending.append(index)
      if _BROKEN not in self._tokenizer.decode(pending):
        texts += self._spelt(pending)
        pending = []
    return Shown(texts + self._spelt(pending), controls)

  def joined(self, parts: Sequence[np.ndarray]) -> str:
    """What tokens say, each part on a line; "" without a tokenizer."""
    if self._tokenizer is None or not parts:
      return ""
    # Decoded at once: a call for each part takes three times as long.
    ids = np.concatenate([x for part in parts for x in (part, self._line)])
    known = (ids >= 0) & (ids < self._tokenizer.vocab_size)
    return self._tokenizer.decode(ids if known.all() else ids[known])

  def _control(self, index: int) -> str | None:
    if self._tokenizer is None or not 0 <= index < self._tokenizer.vocab_size:
      return f"<id {index}>"
    return self._controls.get(index)

  def _alone(self, index: int) -> str:
    found = self._known.get(index)
    if found is None:
      found = self._known[index] = self._tokenizer.decode([index])
    return found

  def _spelt(self, pending: list[int]) -> list[str]:
    """The texts of tokens that spell characters together."""
    if not pending:
      return []
    return [""] * (len(pending) - 1) + [self._tokenizer.decode(pending)]
