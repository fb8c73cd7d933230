"""`/v1/messages`: the same conversations in Anthropic's form."""

import json

import agent_calls
import pytest
import served_policies

from steppo_jax.serving import answers, messages

TOOL = {"name": "look", "input_schema": {"properties": {"at": {}}}}
BODY = {
  "model": "nano", "max_tokens": 8, "seed": 3, "system": "Be short.",
  "messages": [{"role": "user", "content": "go to shelf 1"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  tokenizer = served_policies.tokenizer(tmp_path_factory.mktemp("m") / "nano")
  made = served_policies.policy(tokenizer, served_policies.engine(tokenizer))
  yield made
  made.scheduler.close()


@pytest.fixture(scope="module")
def url(policy):
  with served_policies.served(policy) as address:
    yield address


def ask(url, **more):
  return agent_calls.send(f"{url}/v1/messages", json=BODY | more)


def events(found):
  """Names and data of a stream."""
  parts = [part.splitlines() for part in found.text.split("\n\n") if part]
  return [
    (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
    for name, data in parts
  ]


def test_an_answer_is_that_of_the_same_chat(url):
  found = ask(url, return_token_ids=True).json()
  chat = {
    "model": "nano", "max_tokens": 8, "seed": 3, "return_token_ids": True,
    "messages": [{"role": "system", "content": "Be short."},
                 *BODY["messages"]],
  }  # fmt: skip
  want = agent_calls.send(f"{url}/v1/chat/completions", json=chat).json()
  assert found["prompt_token_ids"] == want["prompt_token_ids"]
  assert found["token_ids"] == want["choices"][0]["token_ids"]
  text = want["choices"][0]["message"]["content"]
  assert found["content"] == [{"type": "text", "text": text}]
  assert found["usage"] == {
    "input_tokens": want["usage"]["prompt_tokens"],
    "output_tokens": want["usage"]["completion_tokens"],
  }


def test_a_stream_has_named_events_in_their_order(url):
  whole = ask(url).json()
  told = events(ask(url, stream=True))
  assert all(name == data["type"] for name, data in told)
  names = [name for name, _ in told]
  deltas = [d["delta"]["text"] for n, d in told if n == "content_block_delta"]
  assert names == [
    "message_start", "content_block_start",
    *["content_block_delta"] * len(deltas), "content_block_stop",
    "message_delta", "message_stop",
  ]  # fmt: skip
  assert "".join(deltas) == whole["content"][0]["text"]
  assert told[-2][1]["delta"]["stop_reason"] == whole["stop_reason"]
  stop = whole["content"][0]["text"][2:4]
  cut = ask(url, stop_sequences=[stop]).json()
  assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", stop)


def test_blocks_become_messages_and_calls_become_blocks(policy):
  asked = messages.MessagesRequest.model_validate(BODY | {
    "tools": [TOOL], "stream": True,
    "messages": [
      {"role": "user", "content": [{"type": "text", "text": "a"},
                                   {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "1", "name": "look", "input": {"at": 2}}]},
      {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "1",
         "content": [{"type": "text", "text": "lamp"}]},
        {"type": "text", "text": "and?"}]},
    ],
  }).chat()  # fmt: skip
  told = [(m.role, m.text, m.tool_call_id) for m in asked.messages]
  assert told == [
    ("system", "Be short.", None), ("user", "ab", None),
    ("assistant", "so", None), ("tool", "lamp", "1"), ("user", "and?", None),
  ]  # fmt: skip
  assert asked.messages[2].reasoning_content == "hm"
  (call,) = asked.messages[2].tool_calls
  assert json.loads(call.function.arguments) == {"at": 2}
  ids, stop_ids, _ = policy.chat_ids(asked.messages, asked.tools)
  for text, reason, kinds in (
    ('<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>',
     "tool_use", ["tool_use"]),
    ("no", "end_turn", ["text"]),
  ):  # fmt: skip
    answer = answers.Answer(policy.tokenizer, stop_ids, ())
    answer.text, answer.finish = text, "stop"
    wanted = policy.request(
      ids, limit=1, temperature=None, seed=1, stop_ids=stop_ids
    )
    form = messages.Messages(
      policy, asked, answer, wanted, tools=asked.tools, opened=False, name="n"
    )
    found = form.whole()
    assert [block["type"] for block in found["content"]] == kinds
    assert found["stop_reason"] == reason
    told = [*form.begin(), *form.end()]
    begun = [d["content_block"] for d in told if "content_block" in d]
    assert [block["type"] for block in begun] == kinds
    if reason == "tool_use":
      assert found["content"][0]["input"] == {"at": 1}
      delta = next(d["delta"] for d in told if "delta" in d)
      assert json.loads(delta["partial_json"]) == {"at": 1}
      # Sent back, the block is that call.
      again = messages.UseBlock.model_validate(found["content"][0])
      assert (again.name, again.input) == ("look", {"at": 1})


@pytest.mark.parametrize(
  ("changes", "status", "kind", "message"),
  [
    ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
    ({"messages": []}, 400, "invalid_request_error", "messages"),
    ({"top_k": 5}, 400, "invalid_request_error", "top_k"),
    ({"model": "gpt"}, 404, "not_found_error", "'gpt' is not served"),
    (
      {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
      400, "invalid_request_error", "image",
    ),
    ({"max_tokens": 5000}, 400, "invalid_request_error", "context"),
    (
      {"tool_choice": {"type": "any"}}, 400, "invalid_request_error",
      "tool_choice",
    ),
  ],
)  # fmt: skip
def test_faults_have_the_form_of_the_client(
  url, changes, status, kind, message
):
  found = ask(url, **changes)
  assert found.status_code == status
  body = found.json()
  assert (body["type"], body["error"]["type"]) == ("error", kind)
  assert message in body["error"]["message"]


def test_tokens_are_counted(url):
  body = {k: BODY[k] for k in ("model", "system", "messages")}
  found = agent_calls.send(f"{url}/v1/messages/count_tokens", json=body).json()
  assert found["input_tokens"] == ask(url).json()["usage"]["input_tokens"]
