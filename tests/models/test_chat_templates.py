"""Templates of released models beside transformers: `make test-models`.

The templates are read from the source of llama-cpp-python, and transformers
runs in an environment of its own; `make test-models` gets both.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import types

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.prompts import chat_template

pytestmark = pytest.mark.models

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = ROOT / "tests" / "support" / "transformers_chats.py"

SPECIAL = {
  "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
  "pad_token": "<pad>",
}  # fmt: skip

# What is not followed, and `faithful` says so: what these do with plain words,
PLAIN_NOT_FOLLOWED = {
  "Mistral-Small-3.2-24B-Instruct-2506": "compares what users say: equal words "
  "of two messages are one to it",
  "mistralai-Mistral-Nemo-Instruct-2407": "compares what users say",
  "Reka-Edge": "looks at the last character of the words before a call",
}
# and with odd ones.
NOT_FOLLOWED = PLAIN_NOT_FOLLOWED | {
  "ByteDance-Seed-OSS": "an answer of white space is none",
  "GLM-4.6": "an answer of white space is none",
  "GLM-4.7-Flash": "an answer of white space is none",
  "HuggingFaceTB-SmolLM3-3B": "a system message of white space is none; marks "
  "of thoughts in it are replaced",
  "MiniMax-M1": "a system message of white space is none",
  "MiniMax-M2": "a thought of white space is none",
  "NVIDIA-Nemotron-Nano-v2": "replaces marks of thoughts in all contents",
  "openbmb-MiniCPM5-1B": "looks for characters in arguments of calls",
  "poolside-Laguna-XS-2.1": "messages of white space are none",
  "poolside-Laguna-XS.2": "messages of white space are none",
}
# The token that ends an answer, for families that end turns in different ways.
ENDS = {
  "Apertus-8B-Instruct": "<|assistant_end|>",  # before another turn only
  "GLM-4.6": None,  # the mark of the next role
  "HuggingFaceTB-SmolLM3-3B": "<|im_end|>",
  "Kimi-K3": None,  # several marks and words
  "MiniMax-M2": "[e~[",
  "Mistral-Small-3.2-24B-Instruct-2506": "</s>",
  "NVIDIA-Nemotron-Nano-v2": "<SPECIAL_12>",
  "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "<|im_end|>",
  "Qwen-Qwen3-0.6B": "<|im_end|>",
  "Qwen3-Coder": "<|im_end|>",
  "deepseek-ai-DeepSeek-V3.1": "<｜end▁of▁sentence｜>",
  "google-gemma-2-2b-it": "<end_of_turn>",
  "google-gemma-4-31B-it": "<turn|>",
  "ibm-granite-granite-4.0": "<|end_of_text|>",
  "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
  "microsoft-Phi-3.5-mini-instruct": "<|end|>",
  "openai-gpt-oss-120b": "<|return|>",  # <|end|> between turns
}


@pytest.fixture(scope="module")
def transformers(peer):
  """Asks transformers what it writes."""
  with subprocess.Popen(
    [peer, SCRIPT, json.dumps(SPECIAL)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    env={**os.environ, "PYTHONPATH": "", "TRANSFORMERS_VERBOSITY": "error"},
    stderr=subprocess.DEVNULL,
  ) as process:  # fmt: skip
    print("\ntransformers", process.stdout.readline().strip())

    def ask(template, messages, options):
      asked = {"template": template, "messages": messages, "options": options}
      process.stdin.write(json.dumps(asked) + "\n")
      process.stdin.flush()
      return json.loads(process.stdout.readline())

    yield ask


PLAIN = st.lists(
  st.sampled_from(["go", "to", "desk 1", "42", "look", "é"]),
  min_size=1, max_size=3,
).map(" ".join)  # fmt: skip
ODD = st.lists(
  st.sampled_from(
    ["go", "the desk", "é😀", "\n", "  ", "\n\n", "a\tb", "{{ x }}", "{% if %}",
     "<|im_end|>", "</s>", "[INST]", '"q"', "'", "\\", "<b>&", "</think>",
     "<think>", "<tool_call>", "<tool_response>"]
  ),
  max_size=4,
).map("".join)  # fmt: skip
TOOL = {
  "type": "function",
  "function": {
    "name": "find",
    "description": "Finds <x> & 'y' — é",
    "parameters": {
      "type": "object",
      "properties": {
        "q": {"type": "string", "description": "what"},
        "n": {"type": "integer", "enum": [1, 3]},
      },
      "required": ["q"],
    },
  },
}


@st.composite
def conversations(draw, text):
  """Messages of all roles, and the options that they are rendered with."""
  messages = []
  if draw(st.booleans()):
    messages.append({"role": "system", "content": draw(text)})
  tools, turns = draw(st.booleans()), draw(st.integers(1, 3))
  for turn in range(turns):
    messages.append({"role": "user", "content": draw(text)})
    if turn == turns - 1 and draw(st.booleans()):
      break
    thought = draw(st.sampled_from(["", "", "inside", "opened", "beside"]))
    beside = {"reasoning_content": draw(text)} if thought == "beside" else {}
    if tools and draw(st.booleans()):
      arguments = {"q": draw(text), "n": 3, "more": [draw(text), None, True]}
      call = {"name": "find", "arguments": arguments}
      messages += [
        {
          "role": "assistant",
          "content": draw(st.sampled_from(["", None, "I look"])),
          "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": call}
          ],
          **beside,
        },
        {
          "role": "tool", "name": "find", "tool_call_id": "abcdefghi",
          "content": draw(text),
        },
      ]  # fmt: skip
    answer = draw(text)
    if thought in ("inside", "opened"):
      opening = "<think>\n" if thought == "inside" else ""
      answer = f"{opening}{draw(text)}\n</think>\n\n{answer}"
    messages.append({"role": "assistant", "content": answer, **beside})
  options = {"add_generation_prompt": draw(st.booleans())}
  return messages, options | ({"tools": [TOOL]} if tools else {})


def drawn(text, count):
  """Conversations, the same at every run."""
  found = []

  @hypothesis.settings(
    max_examples=count, database=None, deadline=None, derandomize=True,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )  # fmt: skip
  @hypothesis.given(conversations(text))
  def draw(conversation):
    found.append(conversation)

  draw()
  return found


@pytest.mark.parametrize(("kind", "text"), [("plain", PLAIN), ("odd", ODD)])
def test_templates_write_what_transformers_writes(
  kind, text, released_templates, transformers
):
  chats = drawn(text, 40)
  counted = collections.Counter()
  different, unfaithful = [], collections.Counter()
  for name, source in released_templates.items():
    one = chat_template.ChatTemplate(source, SPECIAL, where=name)
    for messages, options in chats:
      theirs = transformers(source, messages, options)
      counted["refused" if "error" in theirs else "written"] += 1
      try:
        ours = one.write(messages, **options)
      except ValueError:
        ours = None
      if ours != theirs.get("text"):
        different.append((name, messages, options, ours, theirs))
      if "error" in theirs:
        continue
      rendered = one.render(messages, **options)
      # It says of itself whether it is what transformers writes.
      assert rendered.faithful == (rendered.text == theirs["text"])
      unfaithful[name] += not rendered.faithful
  of = {name: n for name, n in unfaithful.items() if n}
  print(
    f"{kind}: {len(released_templates)} templates, {dict(counted)}; not "
    f"followed, and said so: {sum(of.values())}, {of}"
  )
  assert len(released_templates) >= 40
  assert not different, f"{len(different)}: {different[0]}"
  assert set(of) <= set(PLAIN_NOT_FOLLOWED if kind == "plain" else NOT_FOLLOWED)


def test_the_end_of_an_answer_is_found_in_each(released_templates):
  for name, end in ENDS.items():
    one = chat_template.ChatTemplate(
      released_templates[name], SPECIAL, where=name
    )
    source = "".join([released_templates[name], *SPECIAL.values()])
    marks = set(re.findall(r"<[^<>\s'\"{}]{1,40}>|\[e~\[|\]~b\]", source))
    assert end is None or end in marks
    made = types.SimpleNamespace(controls={m: i for i, m in enumerate(marks)})
    found = one.end_ids(made, [made.controls["</s>"]]).stop
    assert found == (None if end is None else made.controls[end]), name
