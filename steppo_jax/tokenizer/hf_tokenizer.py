"""Tokenizers of released models: `tokenizer.json`, through `tokenizers`."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steppo_jax import files
from steppo_jax.models.formats import chat_templates
from steppo_jax.tokenizer import named_tokens, token_bytes
from steppo_jax.tokenizer import rules as tokenizer_rules

# Whitespace, a ligature, a rare letter, an emoji: any collapsing of spaces and
# any byte that has no id shows on it.
_PROBE = " a  \n\n b\tﬁ½😀 "
_SURROGATES = re.compile("([\ud800-\udfff]+)")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class HuggingFaceTokenizer:
  """A vocabulary and merges as released models have them.

  Attributes:
    vocab_size: Number of ids: those of the vocabulary, gaps, and rows that only
      the model has, which are the empty string. Where the vocabulary names more
      ids than the model has rows, such as the place of an image, it is the
      number of rows, and what is behind is left out.
    num_ids: Number of ids that the vocabulary knows, without rows behind them.
    pad_id: Fills unused slots; the end of a text where the vocabulary has none.
    bos_id: Starts a prompt; `pad_id` where the vocabulary has none.
    end_of_turn_id: Ends a turn: what the chat template writes behind an
      assistant's, or the first id that ends a text where it writes none.
    stop_ids: All ids that end a response, `end_of_turn_id` first: that, and
      those which the files say end a text or a turn.
    prefix_ids: What stands in front of every text of the model, such as the
      id that starts one; often empty. What its files put behind a text is left
      out: a prompt goes on.
    controls: Ids by spelling that `encode` never gives.
    special: Spellings by the name that chat templates know, such as bos_token
      and, where the files name more, image_token.
    chat_template: Jinja source, or several by their names; None without.
    description: Contents of `tokenizer.json`, with the tokens that the files
      beside it name.
    digest: SHA-256 of vocabulary and rules, hexadecimal.
  """

  def __init__(
    self,
    description: str,
    facts: Mapping[str, Any],
    *,
    where: str,
    chat_template: str | Mapping[str, str] | None = None,
  ):
    """Builds the tokenizer.

    Args:
      description: Contents of `tokenizer.json`.
      facts: `bos_token`, `eos_token`, `pad_token`, `unk_token` as spellings,
        None without, `eos_ids`, more ids that end a text, `rows`, how many
        ids the model has, and `named`, what the files beside it name.
      where: The file, for errors.
      chat_template: Jinja source, or several by their names.

    Raises:
      ValueError: the description is broken or of a kind that changes text, or
        a special token is not in the vocabulary.
      RuntimeError: the package tokenizers is missing.
    """
    self._where, rows = where, facts.get("rows")
    rules = given = tokenizer_rules.parse(description, where)
    if facts.get("named"):
      rules = named_tokens.with_added(given, facts["named"])
    if rules is not given:
      description = json.dumps(rules)
    self.description = description
    self.digest = hashlib.sha256(description.encode()).hexdigest()
    rules, left_out = tokenizer_rules.within(rules, rows, where)
    self._control_spellings = tokenizer_rules.controls(
      rules, chat_templates.source_of(chat_template)
    )
    without_prefix = tokenizer_rules.without_prefix
    self._full = tokenizer_rules.build(without_prefix(rules), where)
    plain = tokenizer_rules.without_added(rules, self._control_spellings)
    self._plain = tokenizer_rules.build(without_prefix(plain), where)
    vocabulary = self._full.get_vocab(with_added_tokens=True)
    self._piece = {index: piece for piece, index in vocabulary.items()}
    known = max(self._piece) + 1
    self.num_ids = min(known, facts.get("num_ids") or known)
    self.vocab_size = rows or known
    self.controls = {
      text: vocabulary[text] for text in sorted(self._control_spellings)
    }
    self._control_ids = set(self.controls.values())
    self._set_added(rules, vocabulary)
    self._by_letters = "ByteLevel" in tokenizer_rules.types(
      rules.get("decoder")
    )
    self._byte_id = self._bytes_of(vocabulary)
    self._known: dict[int, bytes] = {}
    self.chat_template = chat_template
    self._set_special(facts, vocabulary, left_out)
    self.prefix_ids = self._before_texts()
    if self.decode(self.encode(_PROBE)) != _PROBE:
      raise ValueError(
        f"the tokenizer of {where} does not give text back exactly; only "
        "byte-level and byte-fallback vocabularies do"
      )

  @classmethod
  def from_folder(cls, folder: str | os.PathLike) -> "HuggingFaceTokenizer":
    """Reads `tokenizer.json` and the facts in the files beside it.

    Raises:
      ValueError: there is none, or one of the files is broken.
    """
    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
      raise ValueError(f"no tokenizer.json in {folder}")
    try:
      description = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{path} is not text ({error}); copy it again"
      ) from error
    settings = _json(folder / "tokenizer_config.json")
    named = named_tokens.read(folder, settings)
    facts: dict[str, Any] = {"named": named}
    facts |= {key: token["content"] for key, token in named.roles.items()}
    facts["eos_ids"] = []
    for name in ("generation_config.json", "config.json"):
      found = _json(folder / name).get("eos_token_id")
      ids = found if isinstance(found, list) else [found]
      facts["eos_ids"] += [i for i in ids if isinstance(i, int)]
    rows = _json(folder / "config.json").get("vocab_size")
    facts["rows"] = rows if isinstance(rows, int) else None
    template = _template(folder, settings)
    return cls(description, facts, where=str(path), chat_template=template)

  def _set_added(self, rules, vocabulary) -> None:
    """Ids of added tokens by how they are decoded.

    The package numbers them, whatever ids the file gives.
    """
    ids = lambda texts: {vocabulary[x] for x in texts if x in vocabulary}
    added = rules.get("added_tokens") or ()
    self._added = ids(token["content"] for token in added)
    self._letters = ids(tokenizer_rules.letters(rules))
    pieces = ids(tokenizer_rules.spelt_as_pieces(rules))
    self._pieces = pieces - self._control_ids
    self._of_turns = ids(
      token["content"]
      for token in added
      if token.get("special") and tokenizer_rules.of_turns(token["content"])
    )

  def _before_texts(self) -> tuple[int, ...]:
    """What the rules of the files put in front of a text."""
    whole = self._full.encode(_PROBE).ids
    text = self._full.encode(_PROBE, add_special_tokens=False).ids
    starts = range(len(whole) - len(text) + 1)
    found = (i for i in starts if whole[i : i + len(text)] == text)
    return tuple(whole[: next(found, 0)])

  def _bytes_of(self, vocabulary) -> dict[int, int]:
    """Id of each byte that has one; some vocabularies lack rare ones."""
    if self._by_letters:
      names = tokenizer_rules.byte_letters()
    else:
      names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    return {b: vocabulary[n] for b, n in names.items() if n in vocabulary}

  def _set_special(self, facts, vocabulary, left_out) -> None:
    self.special, ids = {}, {}
    for role in named_tokens.ROLES:
      text = facts.get(f"{role}_token")
      if text is None or (text in left_out and role not in ("bos", "eos")):
        continue
      if text not in vocabulary:
        raise ValueError(
          f"{self._where}: {role}_token={text!r} is not in the vocabulary"
          f"{', or the model has no row for it' if left_out else ''}"
        )
      self.special[f"{role}_token"], ids[role] = text, vocabulary[text]
    if facts.get("named"):
      more = facts["named"].more.items()
      self.special |= {name: token["content"] for name, token in more}
    ends = [ids["eos"]] if "eos" in ids else []
    ends += [i for i in facts.get("eos_ids", ()) if i in self._piece]
    if self.chat_template is not None:
      # Where rendering shows none, one that the template spells comes first.
      source = chat_templates.source_of(self.chat_template)
      ends.sort(key=lambda i: self._piece[i] not in source)  # stable
      ends = [*self._ends_of_template(ends), *ends]
    if not ends:
      raise ValueError(
        f"{self._where}: nothing says which token ends a text; name eos_token "
        "in tokenizer_config.json"
      )
    self.pad_id = ids.get("pad", ids.get("eos", ends[0]))
    self.bos_id = ids.get("bos", self.pad_id)
    self.stop_ids = tuple(dict.fromkeys(ends))
    self.end_of_turn_id = ends[0]
    self._silent = {*ids.values(), *self.stop_ids} - self._letters

  def _ends_of_template(self, known: list[int]) -> list[int]:
    """The id that the chat template writes behind an assistant's turn, if any.

    A template that is broken says so where a chat is made of it.
    """
    try:
      template = chat_templates.Template(
        self.chat_template, self.special, where=self._where
      )
    except ValueError:
      return []
    stop = template.end_ids(self, known).stop
    return [] if stop is None else [stop]

  def token_id(self, text: str) -> int:
    """Id of a control token by its spelling.

    Raises:
      ValueError: there is no such control token.
    """
    if text not in self.controls:
      raise ValueError(
        f"{text!r} is no control token of {self._where}; "
        f"{', '.join(list(self.controls)[:8])} are"
      )
    return self.controls[text]

  def encode(self, text: str) -> np.ndarray:
    """Returns the int32 ids of a string.

    Control tokens spelt in `text` are plain text. No id and no space is added
    in front or behind.

    Raises:
      ValueError: the vocabulary cannot spell the text.
    """
    ids = self._encode(self._plain, text)
    if not self._control_ids.isdisjoint(ids):
      # Vocabularies that give a whole piece whatever its merges.
      ids = []
      for part in tokenizer_rules.cut(text, self.controls):
        ids += self._encode(self._plain, part)
      if not self._control_ids.isdisjoint(ids):
        raise ValueError(
          f"{self._where} has no other ids for a control token spelt in text"
        )
    return np.array(ids, np.int32)

  def encode_template(self, text: str) -> np.ndarray:
    """Returns the int32 ids of a text of the program's own.

    Control tokens spelt in it become their ids: never give it what a user, a
    tool or a policy wrote.
    """
    return np.array(self._encode(self._full, text), np.int32)

  def _encode(self, inner, text: str) -> list[int]:
    ids: list[int] = []
    for index, part in enumerate(_SURROGATES.split(text)):
      if index % 2:
        raw = part.encode("utf-8", "surrogatepass")
        if not self._byte_id.keys() >= set(raw):
          raise ValueError(
            f"the text has an unpaired surrogate ({part[0]!a}), which "
            f"{self._where} cannot spell"
          )
        ids += [self._byte_id[byte] for byte in raw]
      elif part:
        ids += inner.encode(part, add_special_tokens=False).ids
    return ids

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of any ids.

    Added tokens, such as the marks of thoughts and calls, are as they are
    spelt, but for those that end a response or stand around turns, which are
    the empty string. Bytes that are not UTF-8, which a policy can sample,
    become U+FFFD.

    Raises:
      ValueError: an id is not in the vocabulary.
    """
    flat = token_bytes.checked(ids, self.vocab_size)
    return token_bytes.text_of(b"".join([self._raw(index) for index in flat]))

  def _raw(self, index: int) -> bytes:
    """The bytes of one id."""
    found = self._known.get(index)
    if found is None:
      found = self._known[index] = self._read(index)
    return found

  def _read(self, index: int) -> bytes:
    piece = self._piece.get(index, "")
    if index in self._control_ids or index in self._added:
      if index in self._of_turns or index in self._silent:
        return b""
      if index not in self._pieces:
        return piece.encode()
    if self._by_letters:
      # A letter outside of the table is of a piece that was never merged.
      letters = (tokenizer_rules.LETTER_BYTE.get(x) for x in piece)
      return bytes(x for x in letters if x is not None)
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
      return bytes([int(byte[1], 16)])
    return piece.replace("▁", " ").encode()


def _json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object of a file that may be absent."""
  return files.read_object(path) if path.is_file() else {}


def _template(folder: pathlib.Path, settings) -> str | dict[str, str] | None:
  """The chat template, of files of their own or of the settings.

  Where there are several, they are found by name: in the settings as a list,
  or as files of the folder `additional_chat_templates`.
  """
  named: dict[str, str] = {}
  found = settings.get("chat_template")
  if isinstance(found, str):
    named["default"] = found
  elif isinstance(found, list):
    named |= {
      one["name"]: one["template"]
      for one in found
      if isinstance(one, dict)
      and isinstance(one.get("name"), str)
      and isinstance(one.get("template"), str)
    }
  of_files = {"default": folder / "chat_template.jinja"}
  more = (folder / "additional_chat_templates").glob("*.jinja")
  of_files |= {path.stem: path for path in sorted(more)}
  for name, path in of_files.items():
    if path.is_file():
      named[name] = path.read_text(encoding="utf-8")
  return named.get("default") if named.keys() <= {"default"} else named
