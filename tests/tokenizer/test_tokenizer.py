"""The tokenizer loses nothing and makes names easy to copy."""

import hashlib

import hypothesis
import numpy as np
import pytest
import sentencepiece
import vocabularies
from hypothesis import strategies as st

from steppo_jax.datasets import vocabulary
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import expert
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.prompts import base
from steppo_jax.tokenizer import sentencepiece_tokenizer as tokenizer_lib


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.SentencePieceTokenizer()


BUNDLED = {
  name: tokenizer_lib.SentencePieceTokenizer(path)
  for name, path in tokenizer_lib.BUNDLED.items()
}


def pieces(tokenizer, text):
  return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def any_text():
  return st.text(st.characters(codec=None), max_size=60)


@hypothesis.given(text=any_text())
@hypothesis.example("")
@hypothesis.example("  two  spaces \n\n\t and a tail ")
@hypothesis.example("▁U+2581 is ▁▁ not a space")
@hypothesis.example("a lone surrogate \ud83d and a nul \0")
@hypothesis.example("ﬁ ½ é e\u0301 \r\n \u00a0 😀 go to drawer 41")
def test_every_string_comes_back(text):
  for tokenizer in BUNDLED.values():
    assert tokenizer.decode(tokenizer.encode(text)) == text


@hypothesis.given(
  ids=st.lists(st.integers(0, vocabulary.VOCAB_SIZE - 1), max_size=30)
)
def test_every_id_sequence_decodes(ids):
  for tokenizer in BUNDLED.values():
    text = tokenizer.decode(ids)
    # What is left is text again, whatever the policy sampled.
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", BUNDLED)
def test_controls_are_reached_by_id_only(name):
  tokenizer = BUNDLED[name]
  control = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.end_of_turn_id, 3}
  assert control == {0, 1, 2, 3}
  assert tokenizer.decode(sorted(control)) == ""
  spelt = "<pad><bos><end_of_turn><unk></s><0x41>"
  assert not control & set(tokenizer.encode(spelt).tolist())
  assert tokenizer.decode(tokenizer.encode(spelt)) == spelt


@pytest.fixture(scope="module")
def defined(tmp_path_factory):
  """A model whose maker defined those names, and two frequent texts."""
  path = tmp_path_factory.mktemp("defined") / "defined.model"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["go to shelf 1", "take <a> [b] from drawer"] * 50),
    model_prefix=str(path.with_suffix("")),
    vocab_size=340, model_type="bpe", byte_fallback=True, pad_id=0, bos_id=1,
    eos_id=2, unk_id=3, normalization_rule_name="identity",
    add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
    user_defined_symbols=[*vocabularies.NAMES_OF_FIVE, "You▁see", "<", "<h1>"],
  )  # fmt: skip
  return tokenizer_lib.SentencePieceTokenizer(path)


PARTS = st.sampled_from(
  [*vocabularies.NAMES_OF_FIVE, "<s>", "</s>", "<", "|>", " ", "a", "["]
)


@hypothesis.given(parts=st.lists(PARTS, max_size=8))
def test_a_mark_that_the_maker_defined_is_text_in_text(defined, parts):
  text = "".join(parts)
  ids = defined.encode(text)
  assert set(ids.tolist()).isdisjoint(defined.controls.values())
  assert defined.decode(ids) == text


def test_marks_are_one_id_in_an_answer_and_frequent_texts_everywhere(defined):
  names = {name.replace("▁", " ") for name in vocabularies.NAMES_OF_FIVE}
  assert set(defined.controls) == names | {"<pad>", "<s>", "</s>"}
  assert len(defined.encode("You see")) == len(defined.encode("<h1>")) == 1
  ids = base.answer_ids(defined, "<think>a</think><|im_end|>")
  assert ids[0] == defined.controls["<think>"]
  assert defined.controls["</think>"] in ids
  assert defined.controls["<|im_end|>"] not in ids
  assert defined.decode(ids) == "<think>a</think><|im_end|>"
  assert defined.decode([defined.controls["<|im_end|>"]]) == ""


def test_a_name_has_the_same_ids_wherever_it_stands(tokenizer):
  # A name is two ids: the type and the number.
  (drawer,) = tokenizer.encode(" drawer")
  (twelve,) = tokenizer.encode(" 12")
  for text in (
    "go to drawer 12",
    "you see a desk 1, a drawer 12, a drawer 1, and a drawer 2.",
    "You open the drawer 12. The drawer 12 is open. In it, you see nothing.",
    "take book 1 from drawer 12",
  ):
    ids = tokenizer.encode(text).tolist()
    places = [i for i, index in enumerate(ids) if index == drawer]
    assert places
    assert twelve in [ids[i + 1] for i in places]


@pytest.mark.parametrize("name", vocabulary.NAMES)
def test_a_command_is_verb_names_and_numbers(tokenizer, name):
  assert pieces(tokenizer, f"take {name} 3 from {name} 40") == [
    *("take", f" {name}", " 3", " from", f" {name}", " 40")
  ]


def test_an_observation_is_phrases_names_and_numbers(tokenizer):
  text = "You arrive at desk 2. On the desk 2, you see a pen 1, and a cd 3."
  assert pieces(tokenizer, text) == [
    *("You arrive at", " desk", " 2", ". On the", " desk", " 2"),
    *(", you see a", " pen", " 1", ", and a", " cd", " 3", "."),
  ]


@pytest.mark.parametrize("size", household_worlds.SIZES)
@pytest.mark.parametrize("dialect", household.DIALECTS)
def test_a_game_needs_no_byte_and_no_learned_piece(tokenizer, size, dialect):
  known = len(vocabulary.fixed_pieces()) + 4  # Controls stand in front.
  learned = known + 256  # The bytes stand between.
  for seed in range(20):
    task = household_worlds.generate(seed, split="train", size=size)
    game = household.Game.from_compact(
      task.payload["game"], task.payload["task"], dialect=dialect
    )
    observations, commands = expert.demonstrate(
      game, detours=2.0, noise=0, random=np.random.default_rng(seed)
    )
    for text in (*observations, *commands, *game.admissible_commands):
      ids = tokenizer.encode(text)
      assert ids.max() < learned
      assert not [i for i in ids if tokenizer._processor.is_byte(int(i))], text


@pytest.mark.parametrize("name", BUNDLED)
def test_the_committed_model_is_what_the_script_makes(name):
  # Other releases of SentencePiece may write other bytes, never other pieces.
  tokenizer = BUNDLED[name]
  made = vocabulary.train(name)
  processor = sentencepiece.SentencePieceProcessor(model_proto=made)
  assert [processor.id_to_piece(i) for i in range(len(processor))] == [
    tokenizer._processor.id_to_piece(i) for i in range(tokenizer.vocab_size)
  ]
  committed = tokenizer_lib.BUNDLED[name].read_bytes()
  assert tokenizer.digest == hashlib.sha256(committed).hexdigest()


def test_an_id_out_of_range_is_named(tokenizer):
  with pytest.raises(ValueError, match="id 576 is outside the vocabulary"):
    tokenizer.decode(np.array([1, 576]))
  with pytest.raises(ValueError, match="id -1 is outside"):
    tokenizer.decode([-1])


def test_a_missing_model_is_named(tmp_path):
  with pytest.raises(
    ValueError, match=r"no tokenizer model at .*absent\.model"
  ):
    tokenizer_lib.SentencePieceTokenizer(tmp_path / "absent.model")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 14000])
def test_a_truncated_model_is_an_error(tmp_path, keep):
  path = tmp_path / "cut.model"
  path.write_bytes(tokenizer_lib.HOUSEHOLD_MODEL.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r"cut\.model"):
    tokenizer_lib.SentencePieceTokenizer(path)


def test_a_model_that_changes_text_is_refused(tmp_path):
  prefix = tmp_path / "lossy"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["some words and more words"] * 9),
    model_prefix=str(prefix),
    model_type="bpe",
    vocab_size=290,
    byte_fallback=True,
    pad_id=3,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match="does not give text back exactly"):
    tokenizer_lib.SentencePieceTokenizer(f"{prefix}.model")
