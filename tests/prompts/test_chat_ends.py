"""Ends of turns: found in any template, sampled once, written once."""

import types as python_types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from steppo_jax import types
from steppo_jax.models.formats import chat_templates
from steppo_jax.prompts import base, chat
from steppo_jax.tokenizer import bytes_tokenizer

pytest.importorskip("jinja2", reason="pip install 'steppo_jax[chat]'")

CONTROLS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|return|>")

# Behind each turn of a user, between turns and behind the last of an assistant:
# what released models write, in the manner of the family that is named.
FAMILIES = {
  "chatml": ("<|end|>\n", "<|end|>\n", "<|end|>\n"),
  "the assistant's alone": ("", "</s>", "</s>"),
  "with a space": ("", " </s>", " </s>"),
  "another one at the end": ("<|end|>", "<|end|>", "<|return|>"),
  "the next mark": ("", "\n", ""),
  "none behind the last": ("", "<|end|>\n", ""),
  "and the end of the text": ("<|end|>\n", "<|end|>\n", "<|end|>\n</s>"),
}
STOPS = {
  "chatml": "<|end|>", "the assistant's alone": "</s>", "with a space": "</s>",
  "another one at the end": "<|return|>", "the next mark": None,
  "none behind the last": "<|end|>", "and the end of the text": "<|end|>",
}  # fmt: skip


def template(family, *, system="", start=""):
  """A template of one family; `system` is a turn that is always there."""
  user, within, last = (repr(text) for text in FAMILIES[family])
  return (
    f"{{{{ {start!r} ~ {system!r} }}}}{{% for m in messages %}}"
    "{{ '<|' ~ m.role ~ '|>\n' ~ m.content }}"
    f"{{% if m.role == 'user' %}}{{{{ {user} }}}}"
    f"{{% elif loop.last and not add_generation_prompt %}}{{{{ {last} }}}}"
    f"{{% else %}}{{{{ {within} }}}}{{% endif %}}{{% endfor %}}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
  )


def tokenizer(stops=("</s>",)):
  made = bytes_tokenizer.BytesTokenizer(CONTROLS)
  made.end_of_turn_id = made.token_id(stops[0])
  return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_is_found_by_what_the_template_writes(family):
  # A turn of the system that is always there brings ends of its own.
  ending = "<|end|>\n" if "<|end|>" in FAMILIES[family][0] else ""
  for system in ("", f"<|system|>Be brief.{ending}"):
    for start in ("", "<s>"):
      one = chat.Chat(
        tokenizer(), template=template(family, system=system, start=start)
      )
      stop = STOPS[family] or "</s>"
      assert one.end_id == one.tokenizer.token_id(stop)
      assert one.stop_ids[0] == one.end_id
      assert one.tokenizer.token_id("</s>") in one.stop_ids
      assert len(one.stop_ids) == len(set(one.stop_ids)) <= 2


def test_a_mark_that_does_not_end_alone_is_no_end():
  # A closing of several marks and words; the first closes thoughts as well.
  made = python_types.SimpleNamespace(controls={"<|close|>": 1, "<|eom|>": 2})
  text = (
    "{% for m in messages %}{{ m.content }}<|close|>text<|eom|>{% endfor %}"
  )
  one = chat_templates.Template(text, {}, where="here")
  assert one.end_ids(made) == chat_templates.EndIds(None, ())
  assert one.end_ids(made, [2]).stop == 2
  # Two marks that begin what a user says, and nothing behind an answer.
  text = (
    "{% for m in messages %}{{ '<s><|user|>' if m.role == 'user' }}"
    "{{ m.content }}{% endfor %}"
  )
  made.controls = {"<s>": 1, "<|user|>": 2}
  opens = chat_templates.Template(text, {}, where="here")
  assert opens.end_ids(made) == chat_templates.EndIds(None, ())
  # No chat, no end.
  broken = chat_templates.Template("{{ messages[7].x }}", {}, where="here")
  assert broken.end_ids(made).stop is None


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_has_one_end_whatever_ended_it(family):
  one = chat.Chat(tokenizer(), template=template(family, start="<s>"))
  names = {i: text for text, i in one.tokenizer.controls.items()}
  first = one.prompt([{"role": "user", "content": "a"}])
  ends = [None, *one.stop_ids]

  @hypothesis.given(
    body=st.lists(st.integers(0, 255), min_size=1, max_size=6),
    end=st.sampled_from(ends),
  )
  @hypothesis.settings(max_examples=25)
  def check(body, end):
    said = np.array([*body, *([] if end is None else [end])], np.int32)
    found = one.extend(
      first.ids,
      [{"role": "user", "content": "a"}, one.answer(said),
       {"role": "user", "content": "b"}],
    )  # fmt: skip
    assert found.extends
    behind = found.ids[len(first.ids) + len(said) :].tolist()
    closing = [names[i] for i in behind if i in names]
    # What the template writes there, without an end where one was sampled.
    within = FAMILIES[family][1].strip()
    expected = ["<|user|>", "<|assistant|>"]
    user = FAMILIES[family][0].strip()
    expected[1:1] = [user] if user else []
    if within and end is None:
      expected.insert(0, within)
    assert closing == expected
    written = FAMILIES[family][1].rstrip("\n")
    # The answer may have ended with the template's space before the end, too.
    if end is not None and written not in (
      names[end],
      chr(body[-1]) + names[end],
    ):
      assert not found.faithful
      assert names[end] in found.differs

  check()


def test_an_end_of_several_tokens_is_closed_once():
  text = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}"
    "{{ '<|end|>\n</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
  )
  one = chat.Chat(tokenizer(), template=text)
  asked = {"role": "user", "content": "a"}
  first = one.prompt([asked])
  said = one.tokenizer.encode_template("go<|end|>\n</s>")
  found = one.extend(first.ids, [asked, one.answer(said), asked])
  assert found.extends
  assert found.faithful
  for end in ("<|end|>", "</s>"):
    assert found.ids.tolist().count(one.tokenizer.token_id(end)) == 3


def test_compact_prompts_close_an_answer_once():
  class Tokenizer(bytes_tokenizer.BytesTokenizer):
    stop_ids = (258, 259)

  made = base.CompactPrompt(Tokenizer(["<|end|>"]))
  first = made.first(types.Turn("a"))
  for said, closed in (
    ([65, 258], [65, 258]), ([65, 259], [65, 259]), ([65], [65, 258])
  ):  # fmt: skip
    said = np.array(said, np.int32)
    turns = [types.Turn("a", (), said), types.Turn("b")]
    found = made.extend(first, turns)
    np.testing.assert_array_equal(found, [*first, *closed, 98, 258])
    assert made.action(said) == "A"


def test_an_answer_in_two_pieces_stays_the_ids_that_were_sampled():
  # The generation prompt opens a thought; the template writes it anew.
  text = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}"
    "{% if '</think>' in m.content %}"
    "{% set t, a = m.content.split('</think>') %}"
    "{{ '<think>\n' ~ t.split('<think>')[-1].strip('\n') }}"
    "{{ '\n</think>\n\n' ~ a.strip() }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ opening }}{% endif %}"
  )
  asked = {"role": "user", "content": "a"}
  for opening, begins in (("<think>\n", ""), ("", "<think>\n")):
    one = chat.Chat(tokenizer(), template=text, opening=opening)
    first = one.prompt([asked])
    for words, extends in (
      ("hm\n</think>\n\ngo<|end|>", True), ("hm</think>go<|end|>", False)
    ):  # fmt: skip
      said = one.tokenizer.encode_template(begins + words)
      # A byte that would be encoded as three.
      said = np.insert(said, len(said) - 1, 255)
      found = one.extend(first.ids, [asked, one.answer(said), asked])
      assert found.extends is extends
      assert found.faithful
