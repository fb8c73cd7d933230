"""Tokenizers that are embedded in GGUF files."""

import json
import os
from collections.abc import Sequence
from typing import Any

from steppo_jax.models.formats import gguf_reader
from steppo_jax.tokenizer import hf_tokenizer

_KEY = "tokenizer.ggml."
# Kinds of tokens, by the numbers of the format.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5

# How text is split before merges, by the name that the file gives. The
# expressions are those of the models' own tokenizers.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What llama.cpp does where a file names no split (llama-vocab.cpp): one after
# the other, each inside of what the one before left.
_DEFAULT = (
  r"[\p{P}\$\+<=>\^~\|]+",
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
  r"\p{N}+",
  "[0-9][0-9][0-9]",
)
# By name: the expressions, none for GPT-2's, and whether digits stand alone.
_SPLITS: dict[str, tuple[tuple[str, ...], bool]] = {
  "gpt-2": ((), False),
  "smollm": ((), True),
  "llama-bpe": ((_WORDS % "{1,3}",), False),
  "qwen2": ((_WORDS % "",), False),
  "default": (_DEFAULT, False),
}


def load(path: str | os.PathLike) -> hf_tokenizer.HuggingFaceTokenizer:
  """The tokenizer of a GGUF file.

  Byte-level vocabularies (tokenizer.ggml.model=gpt2) that split text as GPT-2,
  SmolLM, Llama 3 or Qwen 2 do, or as llama.cpp does where the file names no
  split, and vocabularies of SentencePiece (llama).

  Raises:
    ValueError: the file is cut short or no GGUF, has no vocabulary, or one of a
      kind that is not read.
    RuntimeError: a package is missing.
  """
  reader = gguf_reader.open_reader(path)
  value = lambda key, default=None: gguf_reader.value(
    reader, _KEY + key, default
  )
  kind, tokens = value("model"), value("tokens")
  if not tokens:
    raise ValueError(f"{path} has no vocabulary ({_KEY}tokens)")
  each = lambda key: _of_each(path, key, value(key), len(tokens))
  kinds = each("token_type") or [_NORMAL] * len(tokens)
  if kind == "gpt2":
    rules = _byte_level(path, tokens, value("merges"), value("pre", "default"))
  elif kind == "llama":
    rules = _sentencepiece(path, tokens, kinds, each("scores"))
  else:
    raise ValueError(f"{path}: {_KEY}model={kind!r} is none of gpt2, llama")
  rules["added_tokens"] = [
    {
      "id": i, "content": text, "special": kind != _USER, "lstrip": False,
      "rstrip": False, "single_word": False, "normalized": False,
    }
    for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
    if kind in (_CONTROL, _USER, _UNKNOWN)
  ]  # fmt: skip
  facts: dict[str, Any] = {}
  for role, key in (
    ("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"),
    ("sep", "seperator"), ("cls", "cls"), ("mask", "mask"),
  ):  # fmt: skip
    index = value(f"{key}_token_id")
    if index is not None and not 0 <= index < len(tokens):
      raise ValueError(
        f"{path}: {_KEY}{key}_token_id={index} is not in the vocabulary of "
        f"{len(tokens)}"
      )
    facts[f"{role}_token"] = None if index is None else tokens[index]
  # What ends a text, a turn, and a message that is a call of a tool.
  ends = [value(f"{name}_token_id") for name in ("eot", "eos", "eom")]
  facts["eos_ids"] = [i for i in ends if i is not None]
  # Rows that only fill the table up are called unused.
  used = [i for i, kind in enumerate(kinds) if kind != _UNUSED]
  facts["num_ids"] = used[-1] + 1 if used else None
  facts["rows"] = gguf_reader.rows(reader)
  # Written by every converter for SentencePiece, and only where it holds else.
  if value("add_bos_token", kind == "llama") and facts["bos_token"]:
    rules["post_processor"] = _starting_with(
      facts["bos_token"], value("bos_token_id")
    )
  return hf_tokenizer.HuggingFaceTokenizer(
    json.dumps(rules), facts, where=str(path),
    chat_template=_template(reader),
  )  # fmt: skip


def _of_each(path, key: str, found, tokens: int):
  """What a key says of each token; None without the key.

  Raises:
    ValueError: it says it of more or fewer tokens than there are.
  """
  if found is None:
    return None
  if not isinstance(found, list) or len(found) != tokens:
    held = len(found) if isinstance(found, list) else "no list"
    raise ValueError(
      f"{path}: {_KEY}{key} holds {held} for {tokens} tokens ({_KEY}tokens); "
      "convert the file again"
    )
  return found


def _template(reader) -> str | dict[str, str] | None:
  """The chat template; several by their names, where there are more."""
  key = "tokenizer.chat_template"
  default = gguf_reader.value(reader, key)
  names = gguf_reader.value(reader, f"{key}s") or ()
  named = {n: gguf_reader.value(reader, f"{key}.{n}") for n in names}
  if default is None or not named:
    return default
  return {**named, "default": default}


def _byte_level(path, tokens: Sequence[str], merges, pre: str):
  """Rules of a vocabulary over the letters that stand for bytes."""
  if pre not in _SPLITS:
    raise ValueError(
      f"{path}: {_KEY}pre={pre!r} is none of {', '.join(_SPLITS)}; take the "
      "checkpoint with its tokenizer.json"
    )
  if merges is None:
    raise ValueError(f"{path} has no merges ({_KEY}merges)")
  patterns, digits = _SPLITS[pre]
  parts: list[dict[str, Any]] = []
  if digits:
    parts.append({"type": "Digits", "individual_digits": True})
  parts += [
    {
      "type": "Split", "pattern": {"Regex": pattern},
      "behavior": "Isolated", "invert": False,
    }
    for pattern in patterns
  ]  # fmt: skip
  letters = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
    "use_regex": not patterns,
  }  # fmt: skip
  parts.append(letters)
  return {
    "version": "1.0",
    "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
    "decoder": letters,
    "model": {
      "type": "BPE",
      "vocab": {text: i for i, text in enumerate(tokens)},
      "merges": list(merges),
      "ignore_merges": pre == "llama-bpe",
      "byte_fallback": False,
    },
  }


def _sentencepiece(path, tokens: Sequence[str], kinds, scores):
  """Rules of a vocabulary of scores: the best pair is merged first."""
  if scores is None:
    raise ValueError(f"{path} has no scores ({_KEY}scores)")
  ids = {text: i for i, text in enumerate(tokens)}
  normal = {t for t, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
  merges = []
  for text in normal:
    for cut in range(1, len(text)):
      left, right = text[:cut], text[cut:]
      if left in normal and right in normal:
        rank = (-scores[ids[text]], ids[text], cut)
        merges.append((rank, (left, right)))
  merges.sort()
  unknown = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 2]
  return {
    "version": "1.0",
    "normalizer": {
      "type": "Replace", "pattern": {"String": " "}, "content": "▁"
    },
    "pre_tokenizer": None,
    "decoder": {"type": "ByteFallback"},
    "model": {
      "type": "BPE",
      "vocab": ids,
      "merges": [pair for _, pair in merges],
      "unk_token": unknown[0] if unknown else None,
      "fuse_unk": True,
      "byte_fallback": True,
      "ignore_merges": False,
    },
  }  # fmt: skip


def _starting_with(text: str, index: int):
  """A rule that puts one token in front of every text."""
  mark = {"SpecialToken": {"id": text, "type_id": 0}}
  body = lambda name: {"Sequence": {"id": name, "type_id": 0}}
  return {
    "type": "TemplateProcessing",
    "single": [mark, body("A")],
    "pair": [mark, body("A"), body("B")],
    "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}},
  }
