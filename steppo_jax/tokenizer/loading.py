"""Any tokenizer by a name or a path."""

import os
import pathlib

from steppo_jax import types
from steppo_jax.tokenizer import (
  bytes_tokenizer,
  gguf_tokenizer,
  hf_tokenizer,
  sentencepiece_tokenizer,
)

BYTES = "bytes"
# The tokenizer that the weights bring with them; see `pretrained.policy`.
OWN_TOKENIZER = "model"


def load(name: str | os.PathLike) -> types.Tokenizer:
  """The tokenizer that a name or a path stands for.

  Args:
    name: "bytes"; a name of `tokenizer.BUNDLED`; a folder that holds
      `tokenizer.json`, or a SentencePiece model called `tokenizer.model`; such
      a model; or a GGUF file with a vocabulary.

  Raises:
    ValueError: there is none, or it is broken or of a kind that is not read.
    RuntimeError: a package that reads it is missing.
  """
  if name == BYTES:
    return bytes_tokenizer.BytesTokenizer()
  if name in sentencepiece_tokenizer.BUNDLED:
    return sentencepiece_tokenizer.SentencePieceTokenizer(
      sentencepiece_tokenizer.BUNDLED[name]
    )
  path = pathlib.Path(name)
  if path.is_dir():
    if (path / "tokenizer.json").is_file():
      return hf_tokenizer.HuggingFaceTokenizer.from_folder(path)
    if (path / "tokenizer.model").is_file():
      return sentencepiece_tokenizer.SentencePieceTokenizer(
        path / "tokenizer.model"
      )
    raise ValueError(f"no tokenizer.json and no tokenizer.model in {path}")
  if path.name == "tokenizer.json":
    return hf_tokenizer.HuggingFaceTokenizer.from_folder(path.parent)
  if path.suffix == ".gguf":
    return gguf_tokenizer.load(path)
  if path.is_file():
    return sentencepiece_tokenizer.SentencePieceTokenizer(path)
  raise ValueError(
    f"no tokenizer {str(name)!r}: give {BYTES}, "
    f"{', '.join(sentencepiece_tokenizer.BUNDLED)}, a folder with "
    "tokenizer.json, a GGUF file or a SentencePiece model"
  )
