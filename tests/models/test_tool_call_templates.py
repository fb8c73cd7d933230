"""Calls as the chat templates of released models write them are read back.

`make test-models`; the templates are downloaded then. `STEPPO_TEMPLATES_DIR`
names folders of more, separated by colons, such as the `examples` of the source
package of vllm, which pip alone cannot fetch without building it.
"""

import json
import os
import pathlib
import re

import pytest

from steppo_jax.prompts import chat_template, tool_dialects

pytestmark = pytest.mark.models

# By file: the dialect, and whether strict reading takes what it writes too.
DIALECTS = {
  "Bielik-11B-v3.0-Instruct": ("hermes", True),
  "MiMo-VL": ("hermes", True),
  "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": ("hermes", True),
  "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", True),
  "Qwen-QwQ-32B": ("hermes", True),
  "Qwen-Qwen2.5-7B-Instruct": ("hermes", True),
  "Qwen-Qwen3-0.6B": ("hermes", True),
  "Reka-Edge": ("hermes", True),
  "ibm-granite-granite-4.0": ("hermes", True),
  "ibm-granite-granite-4.1": ("hermes", True),
  # Objects and lists between marks of their own, read as untagged ones.
  "Apriel-1.6-15b-Thinker-fixed": ("hermes", False),
  "unsloth-Apriel-1.5": ("hermes", False),
  "MiniMax-M1": ("hermes", False),
  "NVIDIA-Nemotron-Nano-v2": ("hermes", False),
  "Qwen3-Coder": ("qwen3_coder", True),
  "Qwen3.5-4B": ("qwen3_coder", True),
  "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen3_coder", True),
  "StepFun3.5-Flash": ("qwen3_coder", True),
  "ByteDance-Seed-OSS": ("qwen3_coder", False),
  "GLM-4.6": ("glm", True),
  "GLM-4.7-Flash": ("glm", True),
  "Spark2.5": ("glm", True),
  "inclusionai-ling-3.0-flash": ("glm", True),
  "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("deepseek", True),
  "deepseek-ai-DeepSeek-V3.1": ("deepseek", True),
  "moonshotai-Kimi-K2": ("kimi", True),
  "Mistral-Small-3.2-24B-Instruct-2506": ("mistral", True),
  "mistralai-Mistral-Nemo-Instruct-2407": ("mistral", True),
  "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", True),
  "unsloth-mistral-Devstral-Small-2507": ("mistral", True),
  "google-gemma-4-31B-it": ("gemma4", True),
  "google-gemma-4-31B-it-interleaved": ("gemma4", True),
  "openai-gpt-oss-120b": ("harmony", True),
  "meta-llama-Llama-3.1-8B-Instruct": ("llama", True),
  "meta-llama-Llama-3.2-3B-Instruct": ("llama", True),
  "meta-llama-Llama-3.3-70B-Instruct": ("llama", True),
}
# Of the examples of vllm, where they are at hand.
MORE = {
  "tool_chat_template_hermes": ("hermes", True),
  "tool_chat_template_hunyuan_a13b": ("hermes", False),
  "tool_chat_template_granite": ("hermes", False),
  "tool_chat_template_granite_20b_fc": ("hermes", False),
  "tool_chat_template_internlm2_tool": ("hermes", False),
  "tool_chat_template_xlam_qwen": ("hermes", False),
  "tool_chat_template_xlam_llama": ("llama", False),
  "tool_chat_template_phi4_mini": ("llama", False),
  "tool_chat_template_llama3.1_json": ("llama", True),
  "tool_chat_template_llama3.2_json": ("llama", True),
  "tool_chat_template_llama4_json": ("llama", False),
  "tool_chat_template_deepseekr1": ("deepseek", True),
  "tool_chat_template_deepseekv3": ("deepseek", True),
  "tool_chat_template_deepseekv31": ("deepseek", True),
  "tool_chat_template_functiongemma": ("functiongemma", True),
  "tool_chat_template_gemma4": ("gemma4", True),
  "tool_chat_template_mistral": ("mistral", True),
  "tool_chat_template_mistral3": ("mistral", True),
  # Its system message is another once a tool was called.
  "tool_chat_template_mistral_parallel": ("mistral", False),
  "tool_chat_template_qwen3coder": ("qwen3_coder", True),
}
# Read where every argument is a plain word: they write strings without escapes
# or without quotes, or no comma between arguments.
WORDS_ONLY = {
  "tool_chat_template_llama4_pythonic": ("pythonic", True),
}
SCHEMA = {
  "type": "object",
  "properties": {
    "query": {"type": "string"}, "limit": {"type": "integer"},
    "flag": {"type": "boolean"}, "where": {"type": "object"},
  },
  "required": ["query"],
}  # fmt: skip
TOOLS = [
  {
    "type": "function",
    "function": {"name": n, "description": n, "parameters": SCHEMA},
  }
  for n in ("search", "look")
]
ARGUMENTS = {
  "query": "who's \"it\"?\nI </think> \\ 5", "limit": 3, "flag": True,
  "where": {"a": ["b", None, 1.5]},
}  # fmt: skip
CALLS = [
  tool_dialects.ToolCall("search", ARGUMENTS),
  tool_dialects.ToolCall("look", {"query": "12"}),
]
ENDS = (
  "<|im_end|>", "<|eot_id|>", "<|eot|>", "</s>", "<sep>", "<|end_of_text|>",
  "<｜end▁of▁sentence｜>", "<end_of_turn>", "<turn|>", "<|tool_response>",
  "<|role_end|>", "<seed:eos>", "<｜Assistant｜>",
)  # fmt: skip


@pytest.fixture(scope="module")
def templates(released_templates):
  """Those of the package, and those of the folders that are named."""
  found = dict(released_templates)
  for folder in os.environ.get("STEPPO_TEMPLATES_DIR", "").split(":"):
    for path in pathlib.Path(folder).glob("*.jinja") if folder else ():
      found[path.stem] = path.read_text(encoding="utf-8")
  return found


def written(source, name, calls):
  """What a template writes as the answer that makes calls."""
  template = chat_template.ChatTemplate(
    source, {"bos_token": "<s>", "eos_token": "</s>"}, where=name
  )
  error = None
  for as_text in (False, True):
    made = [
      {
        "id": f"abcdef{i:03}", "type": "function",
        "function": {
          "name": call.name,
          "arguments": (
            json.dumps(call.arguments) if as_text else dict(call.arguments)
          ),
        },
      }
      for i, call in enumerate(calls)
    ]  # fmt: skip
    asked = [{"role": "user", "content": "hi"}]
    said = {"role": "assistant", "content": "", "tool_calls": made}
    try:
      before = template.write(asked, tools=TOOLS, add_generation_prompt=True)
      text = template.write([*asked, said], tools=TOOLS)
    except ValueError as found:
      error = found
      continue
    answer = answer_of(before, text)
    if calls[0].name in answer:
      return answer
  raise ValueError(f"{name} writes no call: {error}")


def answer_of(before, text):
  """What stands behind the generation prompt, without the end of the turn."""
  same = 0
  while same < min(len(before), len(text)) and before[same] == text[same]:
    same += 1
  # Two marks may begin alike.
  text = text[same - len(re.search(r"(<[^<>\s]*)?\Z", text[:same])[0]) :]
  text = text.rstrip()
  while ends := [end for end in ENDS if text.endswith(end)]:
    text = text.removesuffix(ends[0]).rstrip()
  return text


@pytest.mark.parametrize("name", [*DIALECTS, *MORE, *WORDS_ONLY])
def test_what_a_template_writes_is_read_back(templates, name):
  if name not in templates:
    assert name not in DIALECTS
    pytest.skip("STEPPO_TEMPLATES_DIR holds no templates of vllm")
  dialect, strict = (DIALECTS | MORE | WORDS_ONLY)[name]
  calls = [CALLS[1]._replace(arguments={"query": "b"})] * 2
  if name not in WORDS_ONLY:
    calls = CALLS
  # The family takes one call a turn.
  one = dialect == "harmony" or (dialect == "llama" and strict)
  calls = calls[:1] if one else calls
  text = written(templates[name], name, calls)
  for flag in (False, True) if strict else (False,):
    found = tool_dialects.parse(text, dialect, strict=flag, tools=TOOLS)
    assert found == calls, text


def test_templates_that_no_dialect_reads_are_known(templates):
  known = DIALECTS | MORE | WORDS_ONLY
  others = []
  for name in sorted(templates.keys() - known.keys()):
    try:
      written(templates[name], name, CALLS[:1])
    except ValueError:
      continue  # It writes no calls, or not from these messages.
    others.append(name)
  print("calls that no dialect reads:", ", ".join(others))
  assert len(others) <= 22
