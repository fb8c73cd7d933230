"""What chat templates read and write: small ones, each for one feature."""

import datetime

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.prompts import chat_template

pytest.importorskip("jinja2", reason="pip install 'steppo_jax[chat]'")

HELLO = {"role": "user", "content": "hi"}


def made(source, **variables):
  return chat_template.ChatTemplate(source, variables, where="here")


@pytest.mark.parametrize(
  ("source", "options", "written"),
  [
    ("{{ tools is none }} {{ documents is none }}", {}, "True True"),
    ("{{ tools is defined and documents is defined }}", {}, "True"),
    ("{{ add_generation_prompt }}", {}, "False"),
    ("{{ x is defined }}", {}, "False"),
    ("{{ bos_token }}", {}, "<s>"),
    ("{{ bos_token }}", {"bos_token": "<b>"}, "<b>"),
    ("{% generation %}{{ messages[0].role }}{% endgeneration %}|", {}, "user|"),
    ("{%- generation -%} a {%- endgeneration -%} |", {}, "a|"),
    ("{% for x in 'ab' %}{% generation %}{{ x ~ loop.index }}"
     "{% endgeneration %}{% endfor %}", {}, "a1b2"),
    ("{% for x in 'abc' %}{% if x == 'b' %}{% continue %}{% endif %}{{ x }}"
     "{% endfor %}", {}, "ac"),
    ("{% for x in 'abc' %}{% if x == 'b' %}{% break %}{% endif %}{{ x }}"
     "{% endfor %}", {}, "a"),
    ("{{ tools | tojson }}", {"tools": [{"b": "<é'>&", "a": None}]},
     '[{"b": "<é\'>&", "a": null}]'),
    ("{{ tools | tojson(indent=2, sort_keys=true) }}",
     {"tools": {"b": 1, "a": 2}},
     '{\n  "a": 2,\n  "b": 1\n}'),
    ("{{ tools | tojson(ensure_ascii=true, separators=(',', ':')) }}",
     {"tools": ["é", 1]}, '["\\u00e9",1]'),
    ("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", {}, "2"),
    ("{{ dict(a=1).a }}", {}, "1"),
    ("  {% if true %}\n a\n  {% endif %}\n", {}, " a\n"),
  ],
)  # fmt: skip
def test_templates_read_and_write_as_in_transformers(source, options, written):
  assert made(source, bos_token="<s>").write([HELLO], **options) == written
  assert made(source, bos_token="<s>").render([HELLO], **options).faithful


def test_templates_are_told_the_time():
  year = made("{{ strftime_now('%Y') }}").write([HELLO])
  assert abs(int(year) - datetime.datetime.now().year) <= 1


def test_keys_that_are_none_are_absent():
  said = {"role": "assistant", "content": None, "tool_calls": None}
  source = (
    "{{ messages[0].content is defined }} {{ 'tool_calls' in messages[0] }}"
  )
  assert made(source).write([said]) == "False False"


@pytest.mark.parametrize(
  "given", ["reasoning_content", "thinking", "reasoning"]
)
def test_thoughts_have_every_name_that_templates_read(given):
  said = {"role": "assistant", "content": "go", given: "why"}
  for read in ("reasoning_content", "thinking"):
    found = made(f"{{{{ messages[0].{read} }}}}").render([said])
    assert found.text == "why"
    assert isinstance(found.pieces[0], chat_template.Slot)
    assert found.faithful


def test_a_template_for_tools_is_taken_where_there_are_tools():
  both = made({"default": "d", "tool_use": "t", "rag": "r"})
  assert both.write([HELLO]) == "d"
  assert both.write([HELLO], tools=[]) == "t"
  assert made({"default": "d"}).write([HELLO], tools=[]) == "d"
  with pytest.raises(ValueError, match="rag, tool_use and no default"):
    made({"tool_use": "t", "rag": "r"})


def test_contents_become_parts_where_a_template_wants_them():
  source = (
    "{% for m in messages %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}|{% endfor %}"
  )
  parts = {"role": "user", "content": [{"type": "text", "text": "ho"}]}
  found = made(source).render([HELLO, parts])
  assert found.text == "hi|ho|"
  assert found.faithful
  assert [p.whole for p in found.pieces if not isinstance(p, str)] == [
    True,
    False,
  ]
  # One that takes both is given texts.
  either = made("{{ messages[0].content is string }}")
  assert either.write([HELLO]) == "True"


def test_names_of_calls_may_be_compared():
  source = (
    "{% for m in messages %}{% if m.tool_calls %}"
    "{% set ns = m.tool_calls[0] %}{{ ns.function.arguments | tojson }}"
    "{% elif m.tool_call_id == messages[0].tool_calls[0].id %}"
    "{{ messages[0].tool_calls[0].function.name }}: {{ m.content }}{% endif %}"
    "{% endfor %}"
  )
  arguments = {"name": "<|im_end|>", "id": 'a "b"\n'}
  call = {"id": "c1", "function": {"name": "find", "arguments": arguments}}
  messages = [
    {"role": "assistant", "content": "", "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
  ]
  found = made(source).render(messages)
  assert found.faithful
  assert found.text.endswith("find: 42")
  # What the policy chose is content, and encoded as such.
  slots = [p.text for p in found.pieces if not isinstance(p, str)]
  assert slots == ["<|im_end|>", 'a \\"b\\"\\n', "42"]


# Templates that change a content, or look at one, in ways that releases have.
CHANGES = {
  "nothing": "{{ m.content }}",
  "strips": "{{ m.content | trim }}",
  "strips lines": "{{ m.content.strip('\n') }}",
  "as JSON": "{{ m.content | tojson }}",
  "as JSON, stripped": "{{ m.content.strip() | tojson }}",
  "looks at the end": "{{ m.content }}{{ '/' if m.content[-1:] != '\n' }}",
  "looks for a word": "{% if 'go' in m.content %}!{% endif %}{{ m.content }}",
  "replaces": "{{ m.content | replace('go', 'went') }}",
  "cuts": "{{ m.content[:3] }}",
  "leaves out": "{% if loop.last %}{{ m.content }}{% endif %}",
  "upper": "{{ m.content | upper }}",
  "counts": "{{ m.content | length }}{{ m.content }}",
  "empty or not": "{{ m.content or 'nothing' }}",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_not_followed_is_said(name):
  one = made(f"{{% for m in messages %}}[{CHANGES[name]}]{{% endfor %}}")
  text = st.lists(
    st.sampled_from(["go", "to", "é", " ", "\n", '"', "<think>", "</think>"]),
    max_size=4,
  ).map("".join)

  @hypothesis.given(st.lists(st.tuples(st.booleans(), text), max_size=3))
  @hypothesis.settings(max_examples=40)
  def check(said):
    messages = [
      {"role": "assistant" if own else "user", "content": words}
      for own, words in said
    ]
    found = one.render(messages)
    alone = one.write(messages)
    assert found.faithful == (found.text == alone)
    if not found.faithful:
      # The reason shows what the template would have written.
      assert repr(alone[-1:])[1:-1] in found.differs

  check()


@pytest.mark.parametrize(
  "name", ["nothing", "strips", "strips lines", "as JSON"]
)
def test_usual_changes_are_followed(name):
  one = made(f"{{% for m in messages %}}[{CHANGES[name]}]{{% endfor %}}")
  said = [{"role": "user", "content": text} for text in (" go\n", "to", '"')]
  found = one.render(said)
  assert found.faithful
  assert len(found.pieces) == 7


def test_a_template_may_look_at_the_characters_of_a_content():
  one = made(
    "{% for m in messages %}{{ m.content }}"
    "{% if '\\n' in m.content %}/{% endif %}{% endfor %}"
  )
  found = one.render([HELLO, {"role": "assistant", "content": "ho"}])
  assert found.text == "hiho"
  assert found.faithful
  assert len(found.pieces) == 2


MARK = "<|im_end|>"
SAID = st.sampled_from(["", "a", "x y", MARK, f"é{MARK}\n", "look-up_2"])
VALUES = st.recursive(
  SAID | st.integers() | st.booleans(),
  lambda inner: (
    st.lists(inner, max_size=2) | st.dictionaries(SAID, inner, max_size=2)
  ),
  max_leaves=5,
)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  SAID,
  st.dictionaries(SAID, VALUES, max_size=3),
  st.dictionaries(
    st.sampled_from(["name", "tool_call_id", "other"]), VALUES, max_size=2
  ),
  st.dictionaries(st.sampled_from(["title", "url", "text"]), SAID),
)
def test_nothing_of_a_message_passes_for_the_templates_own(
  content, arguments, more, part
):
  messages = [
    {"role": "user", "content": [{"type": "text"} | part]},
    {"role": "assistant", "content": content, **more,
     "tool_calls": [{"type": "function", "id": "1",
                     "function": {"name": "f", "arguments": arguments}}]},
    {"role": "tool", "content": content, **more},
  ]  # fmt: skip
  # Keys, ids, names and whatever else is written: as JSON, or plain.
  template = made(
    "{% for m in messages %}{{ m | tojson }}{{ m.name }}{{ m.tool_call_id }}"
    "{% for c in m.tool_calls or [] %}{% for k in c.function.arguments %}"
    "{{ k }}{% endfor %}{% endfor %}{% endfor %}"
  )
  found = template.render(messages)
  own = "".join(piece for piece in found.pieces if isinstance(piece, str))
  assert MARK not in own


@pytest.mark.parametrize(
  ("message", "told"),
  [
    ("x", "no mapping"),
    ({"content": "x"}, "no role"),
    ({"role": 3, "content": "x"}, "no role"),
    ({"role": MARK, "content": "x"}, "no role"),
    ({"role": "user", "content": ("x",)}, "is a tuple"),
    ({"role": "user", "content": ["x"]}, "is a list"),
    ({"role": "assistant", "reasoning_content": ["x"]}, "is no text"),
    ({"role": "assistant", "thinking": 3}, "is no text"),
    ({"role": "assistant", "tool_calls": "x"}, "is no list of calls"),
    ({"role": "assistant", "tool_calls": [["x"]]}, "is no list of calls"),
  ],
)
def test_what_is_no_message_is_told(message, told):
  with pytest.raises(ValueError, match=told):
    made("{{ messages[1] }}").render([HELLO, message])


def test_what_a_template_need_not_write_is_not_told_as_dropped():
  said = {"role": "tool", "content": "r", "tool_call_id": f"a b{MARK}"}
  found = made("{{ messages[0].content }}").render([said])
  assert (found.dropped, found.differs) == ((), "")


@pytest.mark.parametrize(
  ("source", "more", "written"),
  [
    ("{{ m.name | upper }}", {"name": "Mary Ann"}, "MARY ANN"),
    ("{{ m.tool_call_id[-4:] }}", {"tool_call_id": "functions.f:0"}, "ns.f:0"),
    ("{{ 'web' if m.source == 'a web search' }}", {"source": "a web search"},
     "web"),
    ("{% for k, v in m.x | dictsort %}{{ k }};{% endfor %}",
     {"x": {"b": 1, "имя": 1, "a b": 1}}, "a b;b;имя;"),
  ],
)  # fmt: skip
def test_plain_words_of_a_message_can_be_compared_and_changed(
  source, more, written
):
  one = made(
    f"{{% for m in messages %}}{source}{{{{ m.content }}}}{{% endfor %}}"
  )
  found = one.render([{"role": "tool", "content": "!"} | more])
  assert (found.faithful, found.dropped) == (True, ())
  assert found.text == one.write([{"role": "tool", "content": "!"} | more])
  assert found.text.endswith(f"{written[-4:]}!")


def test_keys_that_are_not_written_are_not_told_as_dropped():
  said = {"role": "user", "content": "hi", "metadata": {f"a {MARK}": MARK}}
  found = made("{{ messages[0].content }}").render([said])
  assert (found.dropped, found.differs) == ((), "")
