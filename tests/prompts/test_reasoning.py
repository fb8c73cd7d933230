"""Which tokens of a response are thoughts, told where the response is read."""

import functools
import re

import mark_tokens as marks
import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.envs import calls
from steppo_jax.envs.household import text as household_text
from steppo_jax.prompts import base, options, sections, tool_dialects
from steppo_jax.tokenizer import bytes_tokenizer

BYTES = bytes_tokenizer.BytesTokenizer()
COMPACT = base.CompactPrompt(BYTES)
# What a policy may write around and inside of its thoughts.
WORDS = st.sampled_from(
  ["go ", "é", "🙂", "\n", "<", "</", "think>", "{", '"', "\ufffd", " to"]
)
plain = st.lists(WORDS, max_size=6).map("".join)


def ids_of(text, *, end=True):
  ids = BYTES.encode(text)
  return np.append(ids, BYTES.end_of_turn_id) if end else ids


def told(text, prompt=COMPACT, *, end=True):
  """The text of the tokens that are thoughts, and whether the end is one."""
  ids = ids_of(text, end=end)
  mask = prompt.reasoning(ids)
  assert mask.shape == ids.shape
  assert mask.dtype == bool
  if not end:
    return BYTES.decode(ids[mask])
  return BYTES.decode(ids[:-1][mask[:-1]]), bool(mask[-1])


@pytest.mark.parametrize(
  ("text", "thought", "cut"),
  [
    ("go to desk 1", "", False),
    ("<think>where?</think> go", "<think>where?</think>", False),
    ("<think>a</think>é<think>b</think>", "<think>a</think><think>b</think>",
     False),
    ("first <think>never ends", "<think>never ends", True),
    # The prompt had opened it, or the policy writes an end too many.
    ("é then</think> go", "é then</think>", False),
    ("[THINK]x[/THINK]go", "[THINK]x[/THINK]", False),
    ("", "", False),
  ],
)  # fmt: skip
def test_marks_belong_to_their_thought_and_all_else_is_action(
  text, thought, cut
):
  assert told(text) == (thought, cut)
  assert told(text, end=False) == thought


@given(st.lists(st.tuples(plain, plain), max_size=3), plain)
def test_the_thoughts_are_what_no_environment_reads(parts, last):
  # Alternating texts and closed thoughts, all of them told from the others.
  text = "".join(f"{a}<think>{b}</think>" for a, b in parts) + last
  thought, _ = told(text)
  kept = calls.without_thoughts(text)
  assert len(thought) + len(kept) == len(text)
  ids = ids_of(text, end=False)
  rest = BYTES.decode(ids[~COMPACT.reasoning(ids)])
  assert rest == kept


@functools.cache
def of_calls(dialect, layout="prefix_friendly"):
  config = options.PromptConfig(
    layout=layout, answer="tool_call", dialect=dialect, think=True
  )
  return sections.make(config, BYTES, "household")


@pytest.mark.parametrize("dialect", tool_dialects._FORMS)
def test_a_call_is_an_action_in_every_dialect(dialect):
  made = of_calls(dialect)
  call = tool_dialects.spell("env_step", {"action": "look"}, dialect)
  thought = f"<think>\n{call} or not\n</think>"
  assert told(f"{thought}\n{call}", made) == (thought, False)
  assert told(call, made) == ("", False)


def test_a_mark_in_a_string_of_a_call_begins_no_thought():
  call = tool_dialects.spell("env_step", {"action": "look"}, "hermes")
  call = call.replace("look", "<think>a</think>")
  assert told(call, of_calls("hermes")) == ("", False)
  # Without calls it is one.
  assert told(call)[0] == "<think>a</think>"


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("opened", [False, True])
def test_marks_that_are_one_id_and_thoughts_that_a_template_opens(
  special, opened
):
  inner, tokenizer = marks.released(special, opened)
  made = sections.make(
    options.PromptConfig(layout="chat", answer="tool_call"), tokenizer,
    "household",
  )  # fmt: skip
  call = tool_dialects.spell("env_step", {"action": "look"}, "hermes")
  head = "so be it" if opened else "<think>so be it"
  ids = marks.sampled(inner, f"{head}</think>\n{call}{marks.ENDS}")
  mask = made.reasoning(ids)
  assert made.action(ids) == "look"
  end = inner.token_to_id("</think>")
  at = ids.tolist().index(end)
  np.testing.assert_array_equal(mask, np.arange(len(ids)) <= at)
  # What the template opened is a thought until it is closed.
  text = marks.sampled(inner, f"so be it{marks.ENDS}")
  assert made.reasoning(text).all() == opened


def test_a_thought_of_the_scratchpad_is_told_from_its_command():
  prompt = base.CompactPrompt(worlds.tokenizer())
  text = (
    f"{household_text.THOUGHT} I should walk over there now."
    f"{household_text.THOUGHT_END} go to desk 1"
  )
  ids = prompt.response(text)
  mask = prompt.reasoning(ids)
  shown = worlds.tokenizer().decode(ids[~mask][:-1])
  assert shown.strip() == "go to desk 1"
  assert not mask[-1]
  assert re.fullmatch(r"\s*<think>.*</think> ?",
                      worlds.tokenizer().decode(ids[mask]))  # fmt: skip


def test_places_are_found_without_decoding_every_beginning():
  class Counting:
    """The byte tokenizer, and how often it decoded."""

    stop_ids, calls = BYTES.stop_ids, 0

    def decode(self, ids):
      self.calls += 1
      return BYTES.decode(ids)

  counting = Counting()
  ids = ids_of("<think>" + "so " * 1000 + "</think> go")
  mask = base.reasoning_mask(
    counting, BYTES.stop_ids, ids, lambda text: calls.scan(text).thoughts
  )
  assert mask.sum() == 3015
  assert counting.calls < 30
