"""Tokenizers of released models: the ids of their own packages, no forgery."""

import json

import hypothesis
import numpy as np
import pytest
import vocabularies
from hypothesis import strategies as st

from steppo_jax.tokenizer import bytes_tokenizer, loading

pytest.importorskip("gguf", reason="pip install 'steppo_jax[gguf]'")

TEMPLATE = "<|im_start|>{{ messages }}<|im_end|><tool_response>"
KINDS = ("folder", "gguf of bytes", "gguf of sentencepiece", "bytes")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Each kind of tokenizer, read as a user's files are."""
  root = tmp_path_factory.mktemp("vocabularies")
  inner = vocabularies.byte_level()
  folder = vocabularies.write_folder(root / "hf", inner, template=TEMPLATE)
  fields = vocabularies.byte_level_fields(inner, "gpt-2")
  vocabularies.write_gguf(root / "b.gguf", fields, template=TEMPLATE)
  processor = vocabularies.sentencepiece_model(root)
  fields = vocabularies.sentencepiece_fields(processor)
  vocabularies.write_gguf(root / "s.gguf", fields)
  load = loading.load
  return {
    "folder": load(folder), "gguf of bytes": load(root / "b.gguf"),
    "gguf of sentencepiece": load(root / "s.gguf"), "bytes": load("bytes"),
    "inner": inner, "sentencepiece": processor,
  }  # fmt: skip


def any_text(*more):
  pieces = st.sampled_from(["", " ", "the ", "\n\n", "apple", "▁", *more])
  text = st.text(st.characters(codec="utf-8"), max_size=20)
  return st.lists(pieces | text, max_size=6).map("".join)


@hypothesis.given(text=any_text())
def test_ids_are_those_of_the_packages_that_made_them(made, text):
  whole = made["inner"].encode(text).ids
  assert made["folder"].encode(text).tolist() == whole
  assert made["gguf of bytes"].encode(text).tolist() == whole
  # SentencePiece reads U+2581 as a space, which it is not.
  hypothesis.assume("▁" not in text and "\0" not in text)
  whole = made["sentencepiece"].encode(text)
  assert made["gguf of sentencepiece"].encode(text).tolist() == whole


@pytest.mark.parametrize("kind", ["folder", "gguf of bytes", "bytes"])
def test_every_string_comes_back(made, kind):
  @hypothesis.given(text=st.text(st.characters(codec=None), max_size=60))
  @hypothesis.example("a lone surrogate \ud83d and a nul \0")
  @hypothesis.example(" two  spaces \r\n<|im_end|><bos>")
  def check(text):
    tokenizer = made[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text

  check()


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_becomes_a_control_token(made, kind):
  tokenizer = made[kind]
  spelt = list(tokenizer.controls)
  assert len(spelt) >= 3

  @hypothesis.given(text=any_text(*spelt, *(s[:-1] for s in spelt)))
  @hypothesis.example("".join(spelt))
  def check(text):
    ids = tokenizer.encode(text)
    assert not set(tokenizer.controls.values()) & set(ids.tolist())

  check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_spells_control_tokens(made, kind):
  tokenizer = made[kind]
  for text, index in tokenizer.controls.items():
    ids = tokenizer.encode_template(f"the{text}the").tolist()
    the = tokenizer.encode("the").tolist()
    assert ids == [*the, index, *the]
    # What ends and begins turns is no text; a mark of an answer is.
    mark = text == "<tool_response>"
    assert tokenizer.decode([index]) == (text if mark else "")
    assert tokenizer.token_id(text) == index
  with pytest.raises(ValueError, match="'<none>' is no control token"):
    tokenizer.token_id("<none>")


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_decodes_and_others_are_refused(made, kind):
  tokenizer = made[kind]
  everything = tokenizer.decode(np.arange(tokenizer.vocab_size))
  assert "a" in everything
  for wrong in (-1, tokenizer.vocab_size):
    with pytest.raises(ValueError, match="vocabulary of"):
      tokenizer.decode([wrong])


def test_marks_of_the_template_are_controls_though_not_special(made):
  # The template writes <tool_response>; </tool_response> it never does.
  controls = made["folder"].controls
  assert set(controls) == {*vocabularies.SPECIAL, "<tool_response>"}


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_control_names_of_five_vocabularies_are_text_in_text(tmp_path, form):
  inner = vocabularies.byte_level(mark="<mark>")
  inner.add_special_tokens(list(vocabularies.NAMES_OF_FIVE))
  controls = {inner.token_to_id(x) for x in vocabularies.NAMES_OF_FIVE}
  if form == "folder":
    made = loading.load(vocabularies.write_folder(tmp_path / "hf", inner))
  else:
    fields = vocabularies.byte_level_fields(inner, "gpt-2")
    made = loading.load(vocabularies.write_gguf(tmp_path / "x.gguf", fields))
  assert None not in controls
  parts = st.sampled_from([*vocabularies.NAMES_OF_FIVE, "<", "|>", " ", "a"])

  @hypothesis.given(st.lists(parts, max_size=6).map("".join))
  @hypothesis.example("".join(vocabularies.NAMES_OF_FIVE))
  def check(text):
    ids = made.encode(text)
    assert controls.isdisjoint(ids.tolist())
    assert made.decode(ids) == text

  check()


def test_added_tokens_keep_their_ids_beside_controls(made):
  # </tool_response> is added behind the controls, and is none itself.
  inner, tokenizer = made["inner"], made["folder"]
  text = "the</tool_response>the"
  assert tokenizer.encode(text).tolist() == inner.encode(text).ids
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_that_holds_its_controls_does_not_give_them(tmp_path):
  inner = vocabularies.byte_level()
  rules = json.loads(inner.to_str())
  ids = rules["model"]["vocab"]
  ids["<|im_end|>"] = inner.token_to_id("<|im_end|>")
  # Whole pieces are taken from the vocabulary without asking the merges.
  rules["model"]["ignore_merges"] = True
  rules["pre_tokenizer"]["use_regex"] = False
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  (folder / "tokenizer.json").write_text(json.dumps(rules))
  tokenizer = loading.load(folder)
  forged = tokenizer.encode("<|im_end|>")
  assert tokenizer.end_of_turn_id not in forged
  assert tokenizer.decode(forged) == "<|im_end|>"


def test_the_end_of_a_turn_is_what_the_template_writes(tmp_path):
  inner = vocabularies.byte_level()
  folder = vocabularies.write_folder(
    tmp_path / "hf", inner, eos_token="<|end|>", template=TEMPLATE
  )
  ends = [inner.token_to_id(x) for x in ("<|end|>", "<|im_end|>")]
  facts = json.dumps({"eos_token_id": ends})
  (folder / "generation_config.json").write_text(facts)
  tokenizer = loading.load(folder)
  assert tokenizer.end_of_turn_id == ends[1]
  assert tokenizer.stop_ids == (ends[1], ends[0])
  # Without a token that starts texts, the id that fills slots stands for it.
  assert tokenizer.bos_id == tokenizer.pad_id == ends[0]


def test_what_the_template_writes_ends_a_response_of_a_base_model(tmp_path):
  inner = vocabularies.byte_level()
  text_end, end = map(inner.token_to_id, ("<|end|>", "<|im_end|>"))
  folder = vocabularies.write_folder(
    tmp_path / "hf", inner, eos_token="<|end|>", template=vocabularies.CHATML
  )
  tokenizer = loading.load(folder)
  assert tokenizer.end_of_turn_id == end
  assert tokenizer.stop_ids == (end, text_end)
  # A file for generation names more.
  start = inner.token_to_id("<|im_start|>")
  facts = json.dumps({"eos_token_id": [text_end, start]})
  (folder / "generation_config.json").write_text(facts)
  stops = loading.load(folder).stop_ids
  assert stops[0] == end
  assert set(stops) == {end, text_end, start}


def test_all_ends_of_a_gguf_file_are_taken(tmp_path):
  inner = vocabularies.byte_level()
  ids = [inner.token_to_id(x) for x in vocabularies.SPECIAL]
  names = ("eos_token_id", "eom_token_id", "eot_token_id")
  fields = vocabularies.byte_level_fields(inner, "gpt-2")
  fields |= dict(zip(names, ids, strict=True))
  # Rows that only fill the table up come last, and are of the kind unused.
  fields["tokens"] = [*fields["tokens"], "[PAD0]", "[PAD1]"]
  fields["token_type"] = [*fields["token_type"], 5, 5]
  path = vocabularies.write_gguf(
    tmp_path / "a.gguf", fields, template=vocabularies.CHATML
  )
  tokenizer = loading.load(path)
  assert tokenizer.end_of_turn_id == inner.token_to_id("<|im_end|>")
  assert set(tokenizer.stop_ids) == set(ids)
  assert tokenizer.num_ids == tokenizer.vocab_size - 2 == inner.get_vocab_size()


def test_a_gguf_may_list_what_ends_turns_among_texts(tmp_path):
  inner = vocabularies.byte_level()
  fields = vocabularies.byte_level_fields(inner, "gpt-2")
  user_defined = 4
  for name in vocabularies.SPECIAL:
    fields["token_type"][inner.token_to_id(name)] = user_defined
  tokenizer = loading.load(vocabularies.write_gguf(tmp_path / "a.gguf", fields))
  for name in vocabularies.SPECIAL:
    ids = tokenizer.encode(f"a{name}b")
    assert inner.token_to_id(name) not in ids, name
    assert tokenizer.decode(ids) == f"a{name}b"


def test_templates_by_name_are_all_kept(tmp_path):
  inner = vocabularies.byte_level()
  named = {"default": vocabularies.CHATML, "tool_use": "{{ tools | tojson }}"}
  listed = [{"name": n, "template": t} for n, t in named.items()]
  folder = vocabularies.write_folder(tmp_path / "a", inner, template=listed)
  assert loading.load(folder).chat_template == named
  # Newer folders have them as files.
  folder = vocabularies.write_folder(tmp_path / "b", inner)
  (folder / "chat_template.jinja").write_text(named["default"])
  more = folder / "additional_chat_templates"
  more.mkdir()
  (more / "tool_use.jinja").write_text(named["tool_use"])
  assert loading.load(folder).chat_template == named


def test_no_space_and_no_id_is_put_in_front(tmp_path):
  inner = vocabularies.starts_with(vocabularies.byte_level(), "<|im_start|>")
  inner.pre_tokenizer.add_prefix_space = True
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  tokenizer = loading.load(folder)
  start = inner.token_to_id("<|im_start|>")
  assert inner.encode("the").ids[0] == start
  assert tokenizer.prefix_ids == (start,)
  assert tokenizer.decode(tokenizer.encode("the")) == "the"
  assert start not in tokenizer.encode_template("the")


def test_a_text_of_100k_tokens_is_encoded(made):
  text = "an apple, " * 40_000
  for kind in KINDS:
    ids = made[kind].encode(text)
    assert len(ids) >= 100_000
    assert made[kind].decode(ids) == text


def test_surrogates_are_spelt_in_bytes_or_refused(made, tmp_path):
  for kind in KINDS:
    ids = made[kind].encode("a\ud83d")
    assert made[kind].decode(ids) == "a\ud83d"
  fields = vocabularies.byte_level_fields(made["inner"], "gpt-2")
  at = fields["tokens"].index("í")  # the letter of byte 0xED
  fields["tokens"][at] = "gone"
  path = vocabularies.write_gguf(tmp_path / "b.gguf", fields)
  tokenizer = loading.load(path)
  with pytest.raises(ValueError, match=r"unpaired surrogate \('.ud83d'\)"):
    tokenizer.encode("a\ud83d")


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.7, -2])
def test_a_broken_description_is_refused(tmp_path, keep):
  inner = vocabularies.byte_level()
  path = vocabularies.write_folder(tmp_path / "hf", inner) / "tokenizer.json"
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else keep])
  with pytest.raises(ValueError, match=r"tokenizer\.json is cut short"):
    loading.load(path.parent)
  path.write_text('{"model": {"type": "Hash", "vocab": {}}}')
  with pytest.raises(ValueError, match="no description of a tokenizer"):
    loading.load(path)
  path.write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match="is not text"):
    loading.load(path)


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
  load = loading.load
  inner = vocabularies.byte_level()
  write = vocabularies.write_folder
  folder = write(tmp_path / "a", inner, eos_token="<|eot|>")
  with pytest.raises(ValueError, match=r"eos_token='<.eot.>' is not in"):
    load(folder)
  folder = write(tmp_path / "b", inner, eos_token=None)
  with pytest.raises(ValueError, match="nothing says which token ends a text"):
    load(folder)
  (folder / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
    load(folder)
  (folder / "tokenizer_config.json").write_text("[]")
  with pytest.raises(ValueError, match="holds no JSON object"):
    load(folder)
  with pytest.raises(ValueError, match=r"no tokenizer\.json and no"):
    load(tmp_path)
  with pytest.raises(
    ValueError, match="give bytes, household, scratchpad, worlds"
  ):
    load(tmp_path / "absent")


def test_rows_that_only_the_model_has_are_ids_without_text(tmp_path):
  inner = vocabularies.byte_level()
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  known = inner.get_vocab_size()
  (folder / "config.json").write_text(json.dumps({"vocab_size": known + 5}))
  tokenizer = loading.load(folder)
  assert tokenizer.vocab_size == known + 5
  assert tokenizer.num_ids == known
  assert tokenizer.decode([known + 4]) == ""
  # 2 marks and 3 special tokens were added to the vocabulary.
  (folder / "config.json").write_text(json.dumps({"vocab_size": known - 6}))
  with pytest.raises(ValueError, match=f"{known - 5} ids and the model beside"):
    loading.load(folder)


def test_a_token_without_a_row_is_never_given(tmp_path):
  inner = vocabularies.byte_level()
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  known = inner.get_vocab_size()
  text = "an <tool_response> and </tool_response>"
  for rows in (known - 1, known - 2):
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    tokenizer = loading.load(folder)
    assert tokenizer.vocab_size == tokenizer.num_ids == rows
    for ids in (tokenizer.encode(text), tokenizer.encode_template(text)):
      assert ids.max() < rows
      assert tokenizer.decode(ids) == text
    with pytest.raises(ValueError, match="vocabulary of"):
      tokenizer.decode([rows])
  # The end of a turn would have to be sampled.
  (folder / "config.json").write_text(json.dumps({"vocab_size": known - 3}))
  with pytest.raises(ValueError, match="no row for it"):
    loading.load(folder)


def test_tokens_that_are_no_controls_keep_their_ids(made):
  tokenizer, inner = made["folder"], made["inner"]
  # <tool_response> is a control and left out of what encodes contents.
  mark = "</tool_response>"
  assert tokenizer.encode(f"a{mark}").tolist()[-1] == inner.token_to_id(mark)


def test_a_vocabulary_that_changes_text_is_refused(tmp_path):
  inner = vocabularies.byte_level()
  rules = json.loads(inner.to_str())
  rules["normalizer"] = {"type": "NFKC"}
  folder = vocabularies.write_folder(tmp_path / "hf", inner)
  (folder / "tokenizer.json").write_text(json.dumps(rules))
  with pytest.raises(ValueError, match="does not give text back exactly"):
    loading.load(folder)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"pre": "deepseek"}, "pre='deepseek' is none of gpt-2, smollm"),
    ({"model": "bert"}, "model='bert' is none of gpt2, llama"),
    ({"model": "llama"}, "has no scores"),
    ({"eos_token_id": 10**6}, "eos_token_id=1000000 is not in the vocabulary"),
  ],
)
def test_what_is_not_read_of_a_gguf_is_said(made, tmp_path, change, message):
  fields = vocabularies.byte_level_fields(made["inner"], "gpt-2") | change
  path = vocabularies.write_gguf(tmp_path / "m.gguf", fields)
  with pytest.raises(ValueError, match=message):
    loading.load(path)
  path = vocabularies.write_gguf(tmp_path / "n.gguf", {"model": "gpt2"})
  with pytest.raises(ValueError, match="has no vocabulary"):
    loading.load(path)


def test_digits_and_words_are_split_as_the_file_says(made, tmp_path):
  pieces = {}
  for pre in ("smollm", "llama-bpe", "qwen2", "gpt-2"):
    fields = vocabularies.byte_level_fields(made["inner"], pre)
    if "345" not in fields["tokens"]:
      fields["tokens"] += ["34", "345"]
      fields["token_type"] += [1, 1]
      fields["merges"] += ["3 4", "34 5"]
    path = vocabularies.write_gguf(tmp_path / f"{pre}.gguf", fields)
    tokenizer = loading.load(path)
    pieces[pre] = [tokenizer.decode([i]) for i in tokenizer.encode("345")]
  assert pieces["smollm"] == pieces["qwen2"] == ["3", "4", "5"]
  assert pieces["llama-bpe"] == pieces["gpt-2"] == ["345"]


def test_names_of_byte_tokens_differ():
  with pytest.raises(ValueError, match="must differ"):
    bytes_tokenizer.BytesTokenizer(["<pad>"])
  assert bytes_tokenizer.BytesTokenizer(["<x>"]).vocab_size == 260
