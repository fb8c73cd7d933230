"""What `tokenizer.json` says, read and changed before anything is built."""

import hashlib
import itertools
import json
import re
from collections.abc import Collection
from typing import Any

# Special tokens that begin and end texts, turns and what names whose turn it
# is. What other special tokens spell belongs to an answer: marks of thoughts
# and calls, and whatever a policy should not have written.
_TURNS = re.compile(
  r"<[|｜]?(?:im_(?:start|end|sep|middle|user|assistant|system)|turn"
  r"|(?:start|end|begin)[_▁]of[_▁](?:turn|text|sentence|role|message)"
  r"|(?:start|end)_header_id|role_(?:start|end|sep)|message_sep|endoftext"
  r"|end|eo[tm]_id|eo[tms]|bos|pad|unk|user|assistant|system|User|Assistant|System"
  r")[|｜]?>|</?s>|\[/?INST\]"
)

_HTML = re.compile(
  r"</?(?:h[1-6]|table|thead|tbody|tfoot|caption|t[rhd]|blockquote|strong|em"
  r"|code|su[bp]|[biu])>"
)


def byte_letters() -> dict[int, str]:
  """The letter that stands for each byte in byte-level vocabularies.

  Printable bytes stand for themselves, the others for the letters from U+0100
  on, in their order.

  Source: Radford et al. 2019 (GPT-2), `bytes_to_unicode` of its code.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in set(printable)]
  found = {byte: chr(byte) for byte in printable}
  return found | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTER_BYTE = {letter: byte for byte, letter in byte_letters().items()}


def parse(description: str, where: str) -> dict[str, Any]:
  """The rules as data.

  Raises:
    ValueError: they are cut short, or parts that are read here are absent.
  """
  try:
    rules = json.loads(description)
    # What is read here, before anything is built of it.
    assert isinstance(rules, dict)
    assert isinstance(rules["model"], dict)
    pieces = vocabulary(rules)
    assert all(isinstance(x, str) for x in pieces)
    assert all(isinstance(i, int) for i in pieces.values())
    for token in rules.get("added_tokens") or ():
      assert isinstance(token["content"], str)
      assert isinstance(token["id"], int)
  except (ValueError, KeyError, TypeError, AssertionError) as error:
    raise ValueError(
      f"{where} is cut short or is no description of a tokenizer "
      f"({error or 'wrong fields'}); copy it again"
    ) from error
  return rules


def within(
  rules: dict[str, Any], rows: int | None, where: str
) -> tuple[dict[str, Any], set[str]]:
  """The rules without tokens that the model has no row for, and those tokens.

  Some tokenizers name a token that the text model never sees: that of Gemma 3
  1B has 262,145 ids, the place of an image last, and the model 262,144 rows.
  Only tokens that were added to a vocabulary can be such.

  Args:
    rules: As `parse` gives them.
    rows: Ids that the model has; None where that is not known.
    where: The file, for errors.

  Raises:
    ValueError: an id of the vocabulary itself has no row.
  """
  if rows is None:
    return rules, set()
  added = rules.get("added_tokens") or ()
  left_out = {token["content"] for token in added if token["id"] >= rows}
  pieces = rules["model"].get("vocab")
  if isinstance(pieces, dict):
    pieces = {t: i for t, i in pieces.items() if t not in left_out}
    last = max(pieces.values(), default=-1)
  else:  # Of Unigram models: a list, whose places are the ids.
    last = len(pieces or ()) - 1
  if last >= rows:
    raise ValueError(
      f"{where} has {last + 1} ids and the model beside it {rows}: one of them "
      "is of another model"
    )
  if not left_out:
    return rules, left_out
  kept = [token for token in added if token["id"] < rows]
  model = {**rules["model"], "vocab": pieces}
  return {**rules, "model": model, "added_tokens": kept}, left_out


def build(rules: dict[str, Any], where: str):
  """The tokenizer of the package that follows the rules.

  Texts are neither cut to a length nor filled up to one: files keep what they
  were once trained or saved with, and transformers sets it anew at each call.

  Raises:
    ValueError: the package refuses the rules.
    RuntimeError: the package is missing.
  """
  try:
    import tokenizers
  except ImportError as error:
    raise RuntimeError(
      "released tokenizers are read by the package tokenizers: "
      "pip install 'steppo_jax[chat]'"
    ) from error
  whole = {**rules, "truncation": None, "padding": None}
  try:
    return tokenizers.Tokenizer.from_str(json.dumps(whole))
  except Exception as error:  # the package raises bare Exception
    raise ValueError(
      f"{where} is no description of a tokenizer: {error}"
    ) from error


def vocabulary(rules: dict[str, Any]) -> dict[str, int]:
  """Ids by the pieces of the model, without added tokens."""
  found = rules["model"].get("vocab") or {}
  if isinstance(found, dict):
    return found
  return {piece: i for i, (piece, _) in enumerate(found)}


def letters(rules: dict[str, Any]) -> set[str]:
  """Added tokens of one letter that is a piece: text has no other id for it.

  Some files fill slots with the id of an exclamation mark.
  """
  pieces, added = vocabulary(rules), rules.get("added_tokens") or ()
  return {
    token["content"]
    for token in added
    if len(token["content"]) == 1 and token["content"] in pieces
  }


def spelt_as_pieces(rules: dict[str, Any]) -> set[str]:
  """Added tokens that stand for the text that the decoder makes of them.

  Some files list pieces that the merges make among the added tokens, such as
  Gemma's runs of U+2581, which are spaces. Over the letters of bytes only what
  the merges make is such; any other is found as it is spelt.
  """
  model, added = rules["model"], rules.get("added_tokens") or ()
  plain = {t["content"] for t in added if not t.get("special")}
  if "ByteLevel" not in types(rules.get("decoder")):
    return plain | letters(rules)
  made = set()
  if plain & vocabulary(rules).keys():
    for pair in model.get("merges") or ():
      left_right = pair.split(" ") if isinstance(pair, str) else pair
      made.add("".join(left_right))
  return (plain & made) | letters(rules)


def controls(rules: dict[str, Any], template: str | None) -> set[str]:
  """Spellings that only the program may write.

  Those marked as special, those of turns, and any other whole token of the chat
  template that looks like a mark, such as <tool_response>.
  """
  found = set()
  for token in rules.get("added_tokens") or ():
    text = token["content"]
    in_template = is_mark(text) and text in (template or "")
    if token.get("special") or of_turns(text) or in_template:
      found.add(text)
  return found - letters(rules)


def is_mark(text: str) -> bool:
  """Whether a token of a maker's own looks like a mark, not like a text.

  Tags of HTML are texts: Gemma has one id for each of <table>, <h1> and others.
  """
  bracketed = len(text) > 2 and text[0] + text[-1] in ("<>", "[]")
  return (bracketed and not _HTML.fullmatch(text)) or of_turns(text)


def without_added(rules: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
  """The rules without some added tokens, in which all others keep their ids.

  The package numbers added tokens that the vocabulary does not hold in their
  order, whatever ids the file gives. In the place of one that is left out is a
  spelling that no text has: it begins with a code point that is no character.
  """
  pieces = vocabulary(rules)
  added = rules.get("added_tokens") or ()
  salt = hashlib.sha256(repr(added).encode("utf-8", "replace")).hexdigest()
  kept = []
  for token in added:
    if token["content"] not in left_out:
      kept.append(token)
    elif token["content"] not in pieces:
      kept.append({**token, "content": f"\ufdd0{salt}{token['id']}\ufdd1"})
  return {**rules, "added_tokens": kept}


def cut(text: str, controls: Collection[str]) -> list[str]:
  """The text in parts of which none spells a control token."""
  spelt = sorted(controls, key=len, reverse=True)
  found = re.compile("|".join(map(re.escape, spelt))).finditer(text)
  at = [0, *(match.start() + 1 for match in found), len(text)]
  return [text[i:j] for i, j in itertools.pairwise(at)]


def of_turns(text: str) -> bool:
  """Whether a special token is of the turns and no part of an answer's text."""
  return _TURNS.fullmatch(text) is not None


def types(part: Any) -> set[str]:
  """Types of one part of the rules and of those inside."""
  if not isinstance(part, dict):
    return set()
  found = {part.get("type")}
  for inside in ("decoders", "normalizers", "pretokenizers"):
    for one in part.get(inside) or ():
      found |= types(one)
  return found


def without_prefix(part: Any) -> Any:
  """The rules without those that put a space in front of a text.

  Texts are parts of a prompt, and a space of its own in front of each would be
  read by the model.
  """
  if isinstance(part, list):
    kept = [without_prefix(x) for x in part]
    return [x for x in kept if not _prepends(x)]
  if not isinstance(part, dict):
    return part
  part = {
    key: value if key in ("model", "added_tokens") else without_prefix(value)
    for key, value in part.items()
  }
  if "add_prefix_space" in part:
    part["add_prefix_space"] = False
  if "prepend_scheme" in part:
    part["prepend_scheme"] = "never"
  if _prepends(part.get("normalizer")):
    part["normalizer"] = None
  return part


def _prepends(part) -> bool:
  return isinstance(part, dict) and part.get("type") == "Prepend"
