"""Calls of tools, as the package openai reads them and sends them back."""

import asyncio
import json

import agent_calls
import agents_ahead
import numpy as np
import openai
import pytest
import served_policies

from steppo_jax import types
from steppo_jax.serving import answers, scheduler

CALL = '<tool_call>{"name": "look", "arguments": {"at":  "shelf"}}</tool_call>'
TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "look",
      "parameters": {
        "type": "object",
        "properties": {"at": {"type": "string"}},
      },
    },
  }
]
SEEN = "one blue mug"
ASKED = [{"role": "user", "content": "what is there?"}]


class Engine(agents_ahead.Engine):
  """Calls a tool, and says what is there when it has read the answer."""

  def __init__(self, tokenizer):
    super().__init__(tokenizer)
    self._read = tokenizer.decode
    self._call, self._said = (
      np.array([*tokenizer.encode(text), tokenizer.end_of_turn_id], np.int32)
      for text in (CALL, "a cup")
    )

  def poll(self):
    asked, self._asked = self._asked, []
    found = []
    for one in asked:
      ids = self._said if SEEN in self._read(one.prompt_ids) else self._call
      logp = np.full(len(ids), -1.0, np.float32)
      found.append((one, types.Response(ids, logp, "stop", self.version)))
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  """An address, and the pool behind it."""
  folder = tmp_path_factory.mktemp("served")
  tokenizer = served_policies.tokenizer(folder / "nano")
  engine = Engine(tokenizer)
  engine.set_params(0, 0)
  policy = answers.Policy(
    "nano", tokenizer, scheduler.Scheduler(engine), context=1024,
    max_new_tokens=128,
  )  # fmt: skip
  with served_policies.served(policy, folder / "pool") as url:
    yield url, folder / "pool"
  policy.scheduler.close()


def whole(client, messages):
  """The answer, its reason, and no pieces."""
  (choice,) = client.chat.completions.create(
    model="any", messages=messages, tools=TOOLS
  ).choices
  return choice.message.model_dump(exclude_none=True), choice.finish_reason


def streamed(client, messages):
  """The same, put together as the package's own helper does."""
  with client.chat.completions.stream(
    model="any", messages=messages, tools=TOOLS
  ) as stream:
    (choice,) = stream.get_final_completion().choices
  return choice.message.model_dump(exclude_none=True), choice.finish_reason


def in_a_loop(client, messages):
  """The same by the client that is awaited."""

  async def ask():
    async with openai.AsyncOpenAI(
      base_url=client.base_url, api_key=client.api_key, max_retries=0
    ) as other:
      found = await other.chat.completions.create(
        model="any", messages=messages, tools=TOOLS
      )
    (choice,) = found.choices
    return choice.message.model_dump(exclude_none=True), choice.finish_reason

  return asyncio.run(ask())


@pytest.mark.parametrize("ask", [whole, streamed, in_a_loop])
def test_a_call_is_read_sent_back_and_never_encoded_again(served, ask):
  url, pool = served
  made = agent_calls.make(url)
  with agent_calls.client_of(made) as client:
    said, reason = ask(client, ASKED)
    assert reason == "tool_calls"
    (call,) = said["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    assert json.loads(call["function"]["arguments"]) == {"at": "shelf"}
    # As clients do: what they have read, spelt anew.
    call = {k: call[k] for k in ("id", "type")} | {
      "function": {"name": "look", "arguments": '{"at":"shelf"}'}
    }
    messages = [
      *ASKED,
      {"role": "assistant", "content": None, "tool_calls": [call]},
      {"role": "tool", "tool_call_id": call["id"], "content": SEEN},
    ]
    said, reason = ask(client, messages)
  assert (said["content"], reason) == ("a cup", "stop")
  assert "tool_calls" not in said
  agent_calls.post(made, "finish", status="ended")
  first, second = agent_calls.recorded(made, pool).steps
  before = [*first.prompt_ids, *first.response_ids]
  assert second.prompt_ids[: len(before)].tolist() == before
