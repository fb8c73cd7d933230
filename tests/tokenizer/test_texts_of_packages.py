"""What `tokenizer.json` asks for beside ids: texts cut, filled up, decoded."""

import json

import pytest
import vocabularies

from steppo_jax.tokenizer import loading

TEXT = "the agent takes the apple. " * 50 + "the end"


@pytest.fixture(scope="module")
def inner():
  return vocabularies.byte_level()


def change(folder, inner, **rules):
  vocabularies.write_folder(folder, inner)
  path = folder / "tokenizer.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | rules))
  return loading.load(folder)


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_no_prompt_is_cut_to_a_length(tmp_path, inner, direction):
  # The probe of the tokenizer is shorter than what files ask for.
  rule = {
    "direction": direction, "max_length": 64, "strategy": "LongestFirst",
    "stride": 0,
  }  # fmt: skip
  tokenizer = change(tmp_path / "hf", inner, truncation=rule)
  assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
  assert tokenizer.decode(tokenizer.encode_template(TEXT)) == TEXT


@pytest.mark.parametrize("strategy", ["BatchLongest", {"Fixed": 64}])
def test_no_prompt_is_filled_up(tmp_path, inner, strategy):
  rule = {
    "strategy": strategy, "direction": "Left", "pad_to_multiple_of": 8,
    "pad_id": inner.token_to_id("<|end|>"), "pad_type_id": 0,
    "pad_token": "<|end|>",
  }  # fmt: skip
  tokenizer = change(tmp_path / "hf", inner, padding=rule)
  ids = inner.encode("the apple").ids
  assert tokenizer.encode("the apple").tolist() == ids
  assert tokenizer.encode_template("the apple").tolist() == ids
  assert tokenizer.prefix_ids == ()


@pytest.mark.parametrize(
  ("single", "before"),
  [
    ("<|end|> $A <|im_end|>", ["<|end|>"]),
    ("<|end|> <|im_start|> $A <|im_end|>", ["<|end|>", "<|im_start|>"]),
    ("$A <|im_end|>", []),
    ("$A", []),
  ],
)
def test_what_stands_behind_a_text_is_no_prefix(tmp_path, single, before):
  inner = vocabularies.byte_level()
  marks = [(mark, inner.token_to_id(mark)) for mark in vocabularies.SPECIAL]
  inner.post_processor = vocabularies.tokenizers.processors.TemplateProcessing(
    single=single, special_tokens=marks
  )
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  prefix = loading.load(folder).prefix_ids
  assert [inner.id_to_token(i) for i in prefix] == before


def spaces_as_letters(folder, added):
  """A vocabulary as Gemma has: U+2581 for spaces, bytes for what is rare."""
  pieces = ["<eos>", "▁", "▁▁", "▁▁▁", "▁▁▁▁", "a", "b", "▁a", "<h1>", "a▁b"]
  pieces += [f"<0x{byte:02X}>" for byte in range(256)]
  ids = {piece: i for i, piece in enumerate(pieces)}
  merges = [["▁", "▁"], ["▁▁", "▁"], ["▁▁▁", "▁"], ["▁", "a"]]
  rules = {
    "version": "1.0",
    "added_tokens": [
      {
        "id": ids[text], "content": text, "special": text == "<eos>",
        "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False,
      }
      for text in added
    ],
    "normalizer": {
      "type": "Replace", "pattern": {"String": " "}, "content": "▁"
    },
    "decoder": {
      "type": "Sequence",
      "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
      ],
    },
    "model": {
      "type": "BPE", "vocab": ids, "merges": merges, "byte_fallback": True,
      "fuse_unk": True, "ignore_merges": False,
    },
  }  # fmt: skip
  folder.mkdir()
  (folder / "tokenizer.json").write_text(json.dumps(rules))
  facts = json.dumps({"eos_token": "<eos>"})
  (folder / "tokenizer_config.json").write_text(facts)
  return rules


def test_added_tokens_that_are_spaces_decode_to_spaces(tmp_path):
  added = ["<eos>", "▁", "▁▁", "▁▁▁", "▁▁▁▁", "<h1>", "a▁b", "<0x0A>"]
  rules = spaces_as_letters(tmp_path / "hf", added)
  tokenizer = loading.load(tmp_path / "hf")
  text = "  a   b <h1>\n    "
  assert tokenizer.decode(tokenizer.encode(text)) == text
  package = vocabularies.tokenizers.Tokenizer.from_str(json.dumps(rules))
  for index in range(1, tokenizer.num_ids):
    theirs = package.decode([index], skip_special_tokens=False)
    assert tokenizer.decode([index]) == theirs, index
  assert tokenizer.decode([0]) == ""


def test_added_tokens_that_merges_make_are_read_as_bytes(tmp_path):
  inner = vocabularies.byte_level()
  rules = json.loads(inner.to_str())
  ids = rules["model"]["vocab"]
  ids["ĠĠ"] = len(ids)
  rules["model"]["merges"].append(["Ġ", "Ġ"])
  like = rules["added_tokens"][-1]
  rules["added_tokens"] += [{**like, "content": x} for x in ("ĠĠ", "éa")]
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  (folder / "tokenizer.json").write_text(json.dumps(rules))
  tokenizer = loading.load(folder)
  # The second is of no merges: found as it is spelt, and given back so.
  for text, index in (("  ", ids["ĠĠ"]), ("éa", tokenizer.num_ids - 1)):
    assert tokenizer.encode(text).tolist() == [index]
    assert tokenizer.decode([index]) == text
