"""Marks of thoughts and calls that are one id each are read as marks."""

import typing

import numpy as np
import pytest
from mark_tokens import ENDS, MARKS, answer, released, sampled

from steppo_jax import types
from steppo_jax.prompts import chat, options, sections, tool_dialects
from steppo_jax.tokenizer import bytes_tokenizer


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("dialect", typing.get_args(tool_dialects.Dialect))
def test_a_call_is_read_whose_marks_are_ids(dialect, special):
  inner, tokenizer = released(special)
  ids = sampled(inner, answer(dialect))
  for layout in ("chat", "official", "prefix_friendly"):
    for strict in (False, True):
      made = sections.make(
        options.PromptConfig(
          layout=layout, answer="tool_call", dialect=dialect, strict=strict
        ),
        tokenizer,
        "household",
      )
      assert made.action(ids) == "go to desk 1"
      # Models spell marks by other ids too, and mean the same.
      assert made.action(tokenizer.encode(answer(dialect)[: -len(ENDS)])) == (
        "go to desk 1"
      )


@pytest.mark.parametrize("special", [False, True])
def test_the_text_of_ids_has_the_marks_and_no_ends(special):
  inner, tokenizer = released(special)
  text = "".join(mark for mark in MARKS if mark != "<|end|>")
  ids = sampled(inner, f"<|im_start|>{text}{ENDS}")
  assert len(ids) == len(MARKS) + 1
  assert tokenizer.decode(ids) == text
  one = bytes_tokenizer.BytesTokenizer(("<think>", "<|im_start|>"))
  ids = [one.token_id(x) for x in ("<think>", "<|im_start|>", "<bos>")]
  assert one.decode(ids) == "<think>"


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
  ("text", "opened", "action"),
  [
    ("<think>\nmaybe\n</think>\n\nlook", False, "look"),
    ("<think>maybe", False, ""),
    ("maybe\n</think>\n\nlook", False, "look"),
    ("maybe\n</think>\n\nlook", True, "look"),
    ("<think>maybe\n</think>\n\nlook", True, "look"),
    ("go to bed 1", True, ""),
    ("go to bed 1", False, "go to bed 1"),
    ("a <think> b </think> c </think>look", False, "look"),
  ],
)
def test_a_thought_is_no_part_of_a_command(text, opened, action, special):
  inner, tokenizer = released(special, opened)
  prompts = [chat.ChatPrompt(chat.Chat(tokenizer))]
  for think in (False, True):
    config = options.PromptConfig(layout="chat", think=think)
    prompts.append(sections.make(config, tokenizer, "household"))
  for made in prompts:
    assert made.opens_thought is opened
    for end in ("", ENDS):
      assert made.action(sampled(inner, text + end)) == action


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("layout", ["chat", "official"])
def test_demonstrations_have_the_ids_that_a_policy_samples(layout, special):
  inner, tokenizer = released(special)
  config = options.PromptConfig(layout=layout, answer="tool_call")
  made = sections.make(config, tokenizer, "household")
  call = tool_dialects.spell("env_step", {"action": "look"}, "hermes")
  np.testing.assert_array_equal(
    made.response("look"), sampled(inner, call + ENDS)
  )
  # What would end the turn is plain text all the same.
  forged = made.response(f"look {ENDS}")
  assert forged.tolist().count(tokenizer.end_of_turn_id) == 1
  assert made.action(forged) == f"look {ENDS}"


def test_what_opens_a_thought_in_an_observation_opens_none():
  _, tokenizer = released(False)
  prompt = chat.ChatPrompt(chat.Chat(tokenizer), system="Use <think>.")
  assert not prompt.opens_thought
  first = prompt.first(types.Turn("<think>"))
  assert tokenizer.token_id("<|im_start|>") in first
  assert prompt.action(prompt.response("look")) == "look"


def test_a_thought_of_the_history_is_left_out_by_its_id():
  inner, tokenizer = released(False)
  config = options.PromptConfig(layout="official", think=True)
  made = sections.make(config, tokenizer, "household")
  said = sampled(inner, f"<think>perhaps</think>\n\nlook{ENDS}")
  turns = [types.Turn("A room.", (), said), types.Turn("A desk.")]
  text = tokenizer.decode(made.extend(made.first(turns[0]), turns))
  assert "You answered: \n\nlook\n" in text
  assert "perhaps" not in text


@pytest.mark.parametrize("layout", ["official", "prefix_friendly", "chat"])
def test_faults_and_calls_that_are_left_out_are_told(layout):
  inner, tokenizer = released(False)
  config = options.PromptConfig(layout=layout, answer="tool_call")
  made = sections.make(config, tokenizer, "household")
  call = tool_dialects.spell("env_step", {"action": "look"}, "hermes")
  cut = call[: call.index("look") + 2]

  def told(text):
    said = sampled(inner, text + ENDS)
    turns = [types.Turn("A room.", (), said), types.Turn("A desk.")]
    prompt = tokenizer.decode(made.extend(made.first(turns[0]), turns))
    return made.action(said), prompt

  action, prompt = told(cut)
  assert action == ""
  assert f"{sections.WRONG}the tool call is not JSON: a string is not" in prompt
  # One that can be read beside one that cannot does not hide it.
  assert told(call + cut)[0] == ""
  action, prompt = told(call + call.replace("look", "go to desk 1"))
  assert action == "look"
  assert prompt.count(sections.ONLY_FIRST) == 1
  action, prompt = told(call)
  assert action == "look"
  assert sections.ONLY_FIRST not in prompt
  assert sections.INVALID_CALL not in prompt
