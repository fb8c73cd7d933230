"""Tokenizers in which every mark of thoughts and calls is one id."""

import functools
import pathlib
import tempfile

import numpy as np
import vocabularies

from steppo_jax.prompts import tool_dialects
from steppo_jax.tokenizer import loading

# Every mark that a dialect or a thought has.
MARKS = (
  "<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>",
  "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<start_function_call>",
  "<end_function_call>", "<escape>", "<|tool_call>", "<tool_call|>", '<|"|>',
  "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
  "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<|tool_calls_section_begin|>",
  "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
  "<|tool_calls_section_end|>", "<|channel|>", "<|message|>", "<|constrain|>",
  "<|start|>", "<|end|>", "<arg_key>", "</arg_key>", "<arg_value>",
  "</arg_value>", "<action>", "</action>", "<function=", "<parameter=",
)  # fmt: skip
OPENED = vocabularies.CHATML.replace(
  "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"
)
ENDS = "<|im_end|>"


@functools.cache
def released(special: bool, opened: bool = False):
  """A byte-level tokenizer in which every mark is one id."""
  inner = vocabularies.byte_level()
  add = inner.add_special_tokens if special else inner.add_tokens
  add(list(MARKS))
  with tempfile.TemporaryDirectory() as folder:
    where = vocabularies.write_folder(
      pathlib.Path(folder) / "x", inner,
      template=OPENED if opened else vocabularies.CHATML, pad_token="<|end|>",
    )  # fmt: skip
    return inner, loading.load(where)


def sampled(inner, text):
  """The ids of a text in which each mark is its one id."""
  return np.array(inner.encode(text, add_special_tokens=False).ids, np.int32)


def answer(dialect):
  """A call in a dialect, behind a thought that holds another."""
  thought, call = (
    tool_dialects.spell("env_step", {"action": action}, dialect)
    for action in ("go to sofa 9", "go to desk 1")
  )
  return f"<think>\n{thought} or not\n</think>\n\n{call}{ENDS}"
