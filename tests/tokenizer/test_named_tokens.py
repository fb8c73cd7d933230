"""Special tokens that the files beside `tokenizer.json` name are one id."""

import json

import pytest
import vocabularies

from steppo_jax.prompts import chat
from steppo_jax.tokenizer import loading

MARK = "<|user|>"
TEMPLATE = (
  "{% for m in messages %}<|user|>{{ m.content }}<|im_end|>{% endfor %}"
)
NAMED = TEMPLATE.replace(MARK, "{{ u_token }}")
SAID = [{"role": "user", "content": f"the {MARK} takes"}]
AS_OBJECT = {"content": MARK, "__type": "AddedToken", "special": True}


@pytest.fixture(scope="module")
def inner():
  return vocabularies.byte_level()


def write(folder, inner, *, pieces=(), unadded=(), beside=None, **settings):
  """A folder whose vocabulary holds `pieces`, and does not add `unadded`."""
  vocabularies.write_folder(folder, inner, **settings)
  path = folder / "tokenizer.json"
  rules = json.loads(path.read_text())
  ids = rules["model"]["vocab"]
  for token in list(rules["added_tokens"]):
    if token["content"] in unadded:
      rules["added_tokens"].remove(token)
      ids[token["content"]] = token["id"]
  for piece in pieces:
    added = [token["id"] for token in rules["added_tokens"]]
    ids[piece] = max(*ids.values(), *added) + 1
  path.write_text(json.dumps(rules))
  for name, content in (beside or {}).items():
    (folder / name).write_text(json.dumps(content))
  return folder


def check_one_id(tokenizer):
  """Templates write the mark as one id, and contents never do."""
  prompt = chat.Chat(tokenizer).prompt(SAID, generate=False)
  assert prompt.faithful
  mark = tokenizer.token_id(MARK)
  assert prompt.ids.tolist().count(mark) == 1
  assert prompt.ids[0] == mark
  assert prompt.ids[-1] == tokenizer.token_id("<|im_end|>")
  (start, end, _), *_ = prompt.spans
  assert tokenizer.decode(prompt.ids[start:end]) == SAID[0]["content"]
  return mark


@pytest.mark.parametrize(
  "facts",
  [
    {"sep_token": MARK},
    {"additional_special_tokens": [MARK]},
    {"additional_special_tokens": [AS_OBJECT]},
    {"extra_special_tokens": [MARK]},
    {"u_token": MARK, "template": NAMED},
    {"extra_special_tokens": {"u_token": MARK}, "template": NAMED},
    {"extra_special_tokens": {"u_token": AS_OBJECT}, "template": NAMED},
    {"model_specific_special_tokens": {"u_token": MARK}, "template": NAMED},
    {"beside": {"special_tokens_map.json": {"cls_token": MARK}}},
    {
      "beside": {"special_tokens_map.json": {"u_token": {"content": MARK}}},
      "template": NAMED,
    },
    {
      "beside": {
        "special_tokens_map.json": {"additional_special_tokens": [MARK]}
      }
    },
  ],
)
def test_a_named_piece_of_the_vocabulary_is_one_id(tmp_path, inner, facts):
  facts = {"template": TEMPLATE} | facts
  folder = write(tmp_path / "hf", inner, pieces=[MARK], **facts)
  assert check_one_id(loading.load(folder)) == inner.get_vocab_size()


def test_the_end_of_a_text_may_be_a_plain_piece(tmp_path, inner):
  folder = write(
    tmp_path / "hf", inner, pieces=[MARK], unadded=["<|im_end|>"],
    template=TEMPLATE, additional_special_tokens=[MARK],
  )  # fmt: skip
  tokenizer = loading.load(folder)
  check_one_id(tokenizer)
  end = inner.token_to_id("<|im_end|>")
  assert tokenizer.stop_ids == (end,)
  assert tokenizer.decode([end]) == ""


@pytest.mark.parametrize("place", ["settings", "added_tokens.json", "named"])
def test_tokens_that_only_other_files_hold_are_behind_the_rest(
  tmp_path, inner, place
):
  known = inner.get_vocab_size()
  facts = {
    "settings": {
      "added_tokens_decoder": {
        str(known + 1): {"content": "<b>", "special": False},
        str(known): {"content": MARK, "special": True},
      }
    },
    "added_tokens.json": {
      "beside": {"added_tokens.json": {"<b>": known + 1, MARK: known}}
    },
    "named": {"extra_special_tokens": [MARK, "<b>"]},
  }[place]
  folder = write(tmp_path / "hf", inner, template=TEMPLATE, **facts)
  tokenizer = loading.load(folder)
  assert check_one_id(tokenizer) == known
  assert tokenizer.encode_template("<b>").tolist() == [known + 1]
  assert tokenizer.num_ids == known + 2
  # What has no row of the model is spelt in pieces.
  (folder / "config.json").write_text(json.dumps({"vocab_size": known + 1}))
  tokenizer = loading.load(folder)
  check_one_id(tokenizer)
  assert len(tokenizer.encode_template("<b>")) > 1


def test_templates_see_every_token_that_has_a_name(tmp_path, inner):
  settings = {
    "image_token": "<|end|>",
    "extra_special_tokens": {"think_token": "<|im_start|>"},
    "model_specific_special_tokens": {"call_token": "<tool_response>"},
    "chat_note": "no token",
    "bos_token": None,
    "cls_token": "",
    "video_token": {"content": ""},
  }
  folder = write(tmp_path / "hf", inner, **settings)
  assert loading.load(folder).special == {
    "eos_token": "<|im_end|>",
    "pad_token": "<|end|>",
    "image_token": "<|end|>",
    "think_token": "<|im_start|>",
    "call_token": "<tool_response>",
  }


def test_a_folder_that_adds_nothing_is_as_its_file(tmp_path, inner):
  folder = write(
    tmp_path / "hf", inner, extra_special_tokens={"a_token": "<|end|>"}
  )
  text = (folder / "tokenizer.json").read_text()
  tokenizer = loading.load(folder)
  assert tokenizer.description == text
  more = write(tmp_path / "more", inner, extra_special_tokens=["<x>"])
  assert loading.load(more).digest != tokenizer.digest


def test_a_letter_that_fills_slots_is_text(tmp_path, inner):
  tokenizer = loading.load(write(tmp_path / "hf", inner, pad_token="!"))
  ids = tokenizer.encode("the! who!!")
  assert tokenizer.decode(ids) == "the! who!!"
  assert tokenizer.pad_id in ids
  assert "!" not in tokenizer.controls


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("added_tokens.json", {"<b>": "5"}, r"added_tokens\.json .*'<b>'"),
    (
      "tokenizer_config.json",
      {"added_tokens_decoder": {"5": 6}},
      r"tokenizer_config\.json: added_tokens_decoder .*'5'",
    ),
    (
      "tokenizer_config.json",
      {"added_tokens_decoder": {"x": MARK}},
      r"tokenizer_config\.json: added_tokens_decoder .*'x'",
    ),
    (
      "tokenizer_config.json",
      {"added_tokens_decoder": [MARK]},
      r"tokenizer_config\.json: added_tokens_decoder",
    ),
  ],
)
def test_a_broken_file_beside_is_named(tmp_path, inner, name, content, message):
  folder = write(tmp_path / "hf", inner, beside={name: content})
  with pytest.raises(ValueError, match=message):
    loading.load(folder)
