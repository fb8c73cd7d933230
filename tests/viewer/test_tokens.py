"""Texts of single tokens against the text of all of them."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import recorded_runs

from steppo_jax.tokenizer import bytes_tokenizer
from steppo_jax.viewer import tokens

MARKS = ("<tool_call>", "<think>")
TOKENIZERS = {
  "household": recorded_runs.tokenizer(),
  "bytes": bytes_tokenizer.BytesTokenizer(MARKS),
}
LETTERS = "ab \n\t1é½日本😀\u202e\x1b[<>&\x00"


@pytest.mark.parametrize("name", list(TOKENIZERS))
@hypothesis.given(
  st.lists(
    st.one_of(st.text(LETTERS, max_size=8), st.integers(0, 4)), max_size=6
  )
)
def test_tokens_joined_are_the_text_and_controls_stand_apart(name, parts):
  tokenizer = TOKENIZERS[name]
  special = sorted(tokenizer.controls.values())
  ids, texts = [], []
  for part in parts:
    if isinstance(part, int):
      ids.append(special[part % len(special)])
    else:
      ids += tokenizer.encode(part).tolist()
      texts.append(part)
  shown = tokens.Pieces(tokenizer).shown(ids)
  assert len(shown.texts) == len(ids)
  assert shown.controls == [i for i, id_ in enumerate(ids) if id_ in special]
  controls = set(shown.controls)
  plain = [t for i, t in enumerate(shown.texts) if i not in controls]
  assert "".join(plain) == "".join(texts)
  by_id = {index: text for text, index in tokenizer.controls.items()}
  assert all(shown.texts[i] == by_id[ids[i]] for i in controls)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@hypothesis.given(st.lists(st.integers(-3, 700), max_size=12))
def test_ids_of_any_kind_are_shown_each_once(name, ids):
  tokenizer = TOKENIZERS[name]
  pieces = tokens.Pieces(tokenizer)
  shown = pieces.shown(ids)
  assert len(shown.texts) == len(ids)
  for place, index in enumerate(ids):
    if not 0 <= index < tokenizer.vocab_size:
      assert place in shown.controls
      assert shown.texts[place] == f"<id {index}>"
  assert isinstance(pieces.joined([np.array(ids, np.int64)]), str)


def test_a_character_of_several_tokens_stands_at_its_last():
  tokenizer = TOKENIZERS["bytes"]
  ids = tokenizer.encode("a😀b")
  shown = tokens.Pieces(tokenizer).shown(ids)
  assert shown.texts == ["a", "", "", "", "😀", "b"]


def test_without_a_tokenizer_tokens_are_numbers():
  shown = tokens.Pieces(None).shown([7, 8])
  assert shown.texts == ["<id 7>", "<id 8>"]
  assert tokens.Pieces(None).joined([np.array([7, 8])]) == ""


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_parts_that_are_searched_do_not_run_into_each_other(name):
  tokenizer = TOKENIZERS[name]
  parts = [tokenizer.encode(text) for text in ("open drawer", "", "Nothing")]
  joined = tokens.Pieces(tokenizer).joined(parts)
  assert joined.split("\n") == ["open drawer", "", "Nothing", ""]
