"""One id a byte: for tests, and for models that read bytes."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from steppo_jax.tokenizer import rules, token_bytes

SPECIAL = ("<pad>", "<bos>", "<end_of_turn>")


class BytesTokenizer:
  """The 256 bytes of UTF-8, and control tokens behind them.

  Attributes:
    vocab_size: 256 and the number of control tokens.
    num_ids: The same.
    pad_id: Fills unused slots.
    bos_id: Starts a prompt.
    end_of_turn_id: Ends a response.
    prefix_ids: Empty: nothing stands in front of every text.
    controls: Ids by spelling that `encode` never gives.
    special: Spellings by the name that chat templates know.
    chat_template: Jinja source, None without.
    digest: SHA-256 of the control tokens' spellings, hexadecimal.
  """

  prefix_ids: tuple[int, ...] = ()

  def __init__(
    self, more: Sequence[str] = (), chat_template: str | None = None
  ):
    """Adds control tokens to the three that are always there.

    Raises:
      ValueError: a spelling is empty or occurs twice.
    """
    names = (*SPECIAL, *more)
    if len(set(names)) < len(names) or "" in names:
      raise ValueError(f"control tokens {names} must differ and not be empty")
    self.controls = {name: 256 + i for i, name in enumerate(names)}
    self.vocab_size = self.num_ids = 256 + len(names)
    self.pad_id, self.bos_id, self.end_of_turn_id = 256, 257, 258
    self.special = {
      "pad_token": names[0], "bos_token": names[1], "eos_token": names[2]
    }  # fmt: skip
    self.chat_template = chat_template
    self.digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    self._bytes = [bytes([i]) for i in range(256)]
    for name in names:
      silent = name in SPECIAL or rules.of_turns(name)
      self._bytes.append(b"" if silent else name.encode())
    spelt = sorted(names, key=len, reverse=True)
    self._spelt = re.compile(f"({'|'.join(map(re.escape, spelt))})")

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """All ids that end a response: the end of a turn alone."""
    return (self.end_of_turn_id,)

  def token_id(self, text: str) -> int:
    """Id of a control token by its spelling.

    Raises:
      ValueError: there is no such control token.
    """
    if text not in self.controls:
      raise ValueError(
        f"{text!r} is no control token; {', '.join(self.controls)} are"
      )
    return self.controls[text]

  def encode(self, text: str) -> np.ndarray:
    """Returns the int32 ids of a string; control tokens are plain text."""
    raw = text.encode("utf-8", "surrogatepass")
    return np.frombuffer(raw, np.uint8).astype(np.int32)

  def encode_template(self, text: str) -> np.ndarray:
    """Returns the int32 ids of a text of the program's own.

    Control tokens spelt in it become their ids: never give it what a user, a
    tool or a policy wrote.
    """
    parts = [
      np.array([self.controls[part]], np.int32) if i % 2 else self.encode(part)
      for i, part in enumerate(self._spelt.split(text))
    ]
    return np.concatenate(parts)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of any ids.

    Control tokens are as they are spelt, but for those of turns, which are the
    empty string.

    Raises:
      ValueError: an id is not in the vocabulary.
    """
    flat = token_bytes.checked(ids, self.vocab_size)
    return token_bytes.text_of(b"".join([self._bytes[i] for i in flat]))
