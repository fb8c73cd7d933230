"""Text to ids and back, without loss, with SentencePiece."""

import hashlib
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_format

from steppo_jax.tokenizer import rules, token_bytes

_ASSETS = pathlib.Path(__file__).parent / "assets"
HOUSEHOLD_MODEL = _ASSETS / "household.model"
# Tokenizers that come with the package: of the household games, and of the
# generated shops, questions and papers.
BUNDLED = {
  "household": HOUSEHOLD_MODEL,
  "scratchpad": _ASSETS / "scratchpad.model",
  "worlds": _ASSETS / "worlds.model",
}

_SPACE = "▁"  # U+2581: how SentencePiece spells a space inside its pieces.

# SentencePiece reads U+2581 as a space and cannot take lone surrogates; both go
# through byte pieces instead.
_BY_BYTES = re.compile("([▁\ud800-\udfff]+)")

# Whitespace, a ligature, a fraction and a rare letter: any normalisation, any
# collapsing of spaces and any missing byte piece shows on it.
_PROBE = " a  \n\n b\tﬁ½\u0301😀 "


class SentencePieceTokenizer:
  """A SentencePiece model that gives every string back exactly.

  Attributes:
    vocab_size: Number of ids.
    num_ids: The same.
    pad_id: Fills unused slots.
    bos_id: Starts a prompt.
    end_of_turn_id: Ends a response.
    stop_ids: The same, as a tuple.
    controls: The id of each control token by its spelling: control pieces, and
      pieces that the model's maker defined and that look like a mark, such as
      <tool_call>.
    digest: SHA-256 of the model file, hexadecimal.
  """

  def __init__(self, path: str | pathlib.Path = HOUSEHOLD_MODEL):
    """Reads a model file.

    Args:
      path: SentencePiece model trained with identity normalisation, byte
        fallback and no dummy prefix.

    Raises:
      ValueError: the file is missing or corrupt, lacks a control piece, or
        changes text.
    """
    path = pathlib.Path(path)
    if not path.is_file():
      raise ValueError(
        f"no tokenizer model at {path}; give the path of a SentencePiece "
        "model or make one with `python -m steppo_jax.datasets.vocabulary`"
      )
    model = path.read_bytes()
    self.digest = hashlib.sha256(model).hexdigest()
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f"{path} ({len(model)} bytes) is not a SentencePiece model or is cut "
        "short; copy it again or make it with "
        "`python -m steppo_jax.datasets.vocabulary`"
      ) from error
    self.vocab_size = self.num_ids = len(self._processor)
    self.pad_id = self._processor.pad_id()
    self.bos_id = self._processor.bos_id()
    self.end_of_turn_id = self._processor.eos_id()
    for name in ("pad_id", "bos_id", "end_of_turn_id"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"the tokenizer model {path} has no {name}; train it with pad, bos "
          "and eos ids of at least 0"
        )
    self.stop_ids = (self.end_of_turn_id,)
    self.controls = _controls(model)
    self._control_ids = set(self.controls.values())
    self._bytes = [self._piece_bytes(i) for i in range(self.vocab_size)]
    self._byte_id = {
      piece[0]: i
      for i, piece in enumerate(self._bytes)
      if self._processor.is_byte(i)
    }
    if len(self._byte_id) < 256 or self.decode(self.encode(_PROBE)) != _PROBE:
      raise ValueError(
        f"the tokenizer model {path} does not give text back exactly; train it "
        "with identity normalisation, byte fallback, no dummy prefix and "
        "extra whitespace kept"
      )

  def _piece_bytes(self, index: int) -> bytes:
    piece = self._processor.id_to_piece(index)
    if self._processor.is_byte(index):
      return bytes([int(piece[3:5], 16)])
    if self._processor.is_unknown(index):
      return b""
    if index in self._control_ids:
      ids = (self.pad_id, self.bos_id, self.end_of_turn_id)
      silent = index in ids or rules.of_turns(piece)
      return b"" if silent else piece.encode()
    return piece.replace(_SPACE, " ").encode()

  def encode(self, text: str) -> np.ndarray:
    """Returns the int32 ids of a string.

    Control tokens spelt in `text` are plain text. No id is added in front or
    behind.
    """
    ids: list[int] = []
    for index, part in enumerate(_BY_BYTES.split(text)):
      if index % 2:
        raw = part.encode("utf-8", "surrogatepass")
        ids.extend(self._byte_id[byte] for byte in raw)
      elif part:
        ids.extend(self._text_ids(part))
    return np.array(ids, np.int32)

  def _text_ids(self, text: str) -> list[int]:
    """The ids of a text; no piece of it may be a control token."""
    ids = self._processor.encode(text)
    if self._control_ids.isdisjoint(ids):
      return ids
    # Pieces that a model's maker defined are found before all others.
    parts = rules.cut(text, self.controls)
    return [id_ for part in parts for id_ in self._processor.encode(part)]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of any ids.

    Control tokens are as they are spelt, but for those of turns, which are the
    empty string. Bytes that are not UTF-8, which a policy can sample, become
    U+FFFD.

    Raises:
      ValueError: an id is not in the vocabulary.
    """
    flat = token_bytes.checked(ids, self.vocab_size)
    return token_bytes.text_of(b"".join([self._bytes[i] for i in flat]))


def _controls(model: bytes) -> dict[str, int]:
  """The ids of control tokens by their spelling.

  A maker defines pieces for marks and for frequent words alike; what stands
  between angle or square brackets, or is known to end a turn, is a mark.
  """
  kinds = model_format.ModelProto.SentencePiece
  found = {}
  for index, one in enumerate(model_format.ModelProto.FromString(model).pieces):
    piece = one.piece.replace(_SPACE, " ")
    defined = one.type == kinds.USER_DEFINED and rules.is_mark(piece)
    if one.type == kinds.CONTROL or defined:
      found[piece] = index
  return found
