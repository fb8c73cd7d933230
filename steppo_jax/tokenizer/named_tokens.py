"""Special tokens that the files beside `tokenizer.json` name.

A token that they name is one id wherever a chat template writes it, though
`tokenizer.json` may hold it as a plain piece of its vocabulary, or not at all.
Which files count, and the numbers of what they add, are those of transformers
(`PreTrainedTokenizerBase.from_pretrained`, transformers 5.23).
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from steppo_jax import files
from steppo_jax.tokenizer import rules as tokenizer_rules

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ROLE_NAMES = tuple(f"{role}_token" for role in ROLES)
_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Named(NamedTuple):
  """Tokens as `tokenizer.json` writes added tokens, but for their ids.

  Attributes:
    roles: By what they are to every model, such as eos_token.
    more: By further names that chat templates know, such as image_token.
    listed: Special tokens without a name.
    added: What the files say was added to the vocabulary, in its order.
  """

  roles: Mapping[str, Mapping[str, Any]]
  more: Mapping[str, Mapping[str, Any]]
  listed: tuple[Mapping[str, Any], ...]
  added: tuple[Mapping[str, Any], ...]


def read(folder: pathlib.Path, settings: Mapping[str, Any]) -> Named:
  """What the files of a folder name.

  Args:
    folder: May hold `special_tokens_map.json` and `added_tokens.json`, which
      say what `added_tokens_decoder` of newer settings says.
    settings: Contents of `tokenizer_config.json`.

  Raises:
    ValueError: one of the files is broken.
  """
  path = folder / "special_tokens_map.json"
  mapped = files.read_object(path) if path.is_file() else {}
  mapped = {key: value for key, value in mapped.items() if value is not None}
  old = "added_tokens_decoder" not in settings
  both = {**settings, **mapped} if old else {**mapped, **settings}
  roles = {
    key: token
    for key in _ROLE_NAMES
    if (token := _token(both.get(key)) or _token(mapped.get(key)))
  }
  sources = (settings, mapped) if old else (settings,)
  more: dict[str, Mapping[str, Any]] = {}
  listed: list[Mapping[str, Any]] = []
  for facts in sources:
    found = {k: v for k, v in facts.items() if k.endswith("_token")}
    for key in ("model_specific_special_tokens", _LISTS[0]):
      named = facts.get(key)
      found |= named if isinstance(named, dict) else {}
    more |= {
      key: token
      for key, value in found.items()
      if key not in _ROLE_NAMES and (token := _token(value))
    }
    lists = [facts.get(key) for key in _LISTS]
    first = next((x for x in lists if isinstance(x, list) and x), [])
    listed += [token for value in first if (token := _token(value))]
  special = {t["content"] for t in [*roles.values(), *listed]}
  added = _old_added(folder, special) if old else _added(folder, settings)
  return Named(roles, more, tuple(listed), added)


def _added(folder: pathlib.Path, settings) -> tuple[Mapping[str, Any], ...]:
  """Those of the settings, which have an id each."""
  where = folder / "tokenizer_config.json"
  found = settings["added_tokens_decoder"]
  found = {} if found is None else found
  numbered: dict[int, Mapping[str, Any]] = {}
  for index, value in found.items() if isinstance(found, dict) else [("", 0)]:
    token = _token(value, special=False)
    if token is None or not index.isdecimal():
      raise ValueError(
        f"{where}: added_tokens_decoder does not give a token by its id at "
        f"{index!r}; copy the file again"
      )
    numbered[int(index)] = token
  found = (numbered[index] for index in sorted(numbered))
  return tuple(token for token in found if token["content"])


def _old_added(folder: pathlib.Path, special) -> tuple[Mapping[str, Any], ...]:
  """Those of `added_tokens.json`, which has an id by each spelling."""
  path = folder / "added_tokens.json"
  found = files.read_object(path) if path.is_file() else {}
  for text, index in found.items():
    if not isinstance(index, int):
      raise ValueError(
        f"{path} does not give an id for {text!r}; copy it again"
      )
  return tuple(
    {**_plain(text, text in special), "old": True}
    for text in sorted(found, key=lambda text: found[text])
    if text
  )


def _token(value: Any, *, special: bool = True) -> dict[str, Any] | None:
  """A token that is written as text or as an object with its content.

  Some files write an empty text for a special token that they have not.
  """
  if isinstance(value, str):
    value = {"content": value}
  if not isinstance(value, dict) or not isinstance(value.get("content"), str):
    return None
  if special and not value["content"]:
    return None
  given = {key: value[key] for key in _FLAGS if key in value}
  given["special"] = special or bool(given.get("special"))
  return {**_plain(value["content"], given["special"]), **given}


def _plain(text: str, special: bool) -> dict[str, Any]:
  """A token that takes nothing from around it.

  One that is special is found in a text as it was before it was normalised.
  """
  return {
    "content": text, "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": not special, "special": special,
  }  # fmt: skip


def with_added(rules: dict[str, Any], named: Named) -> dict[str, Any]:
  """The rules with every token that is named; the same where they have all.

  A token that has a role but is nowhere in the files is not added: the model
  has no row for it.
  """
  before = {
    token["content"]: token for token in rules.get("added_tokens") or ()
  }
  vocabulary = tokenizer_rules.vocabulary(rules)
  found: dict[str, Mapping[str, Any]] = dict(before)
  for token in named.added:
    text, token = token["content"], dict(token)
    if token.pop("old", False) and text in found:
      continue
    found[text] = {**found.get(text, {}), **token}
  for token in named.roles.values():
    text = token["content"]
    if text in found:
      found[text] = {**found[text], "special": True}
    elif text in vocabulary:
      found[text] = token
  for token in itertools.chain(named.more.values(), named.listed):
    found.setdefault(token["content"], token)
  if found == before:
    return rules
  # As the package numbers them: behind as many pieces as there are.
  behind = itertools.count(len(vocabulary))
  added = [
    {**token, "id": vocabulary[text] if text in vocabulary else next(behind)}
    for text, token in found.items()
  ]
  return {**rules, "added_tokens": added}
