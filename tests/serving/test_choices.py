"""What a client may choose where nothing is trained: top_p, and a tool."""

import typing

import agent_calls
import numpy as np
import openai
import pytest
import served_policies

from steppo_jax import types
from steppo_jax.prompts import tool_dialects
from steppo_jax.serving import answers, schema

SAY = [agent_calls.user("go to shelf 1")]
LOOK_NAME = {"name": "look"}
LOOK = [
  {
    "type": "function",
    "function": {"name": "look", "parameters": {"properties": {"at": {}}}},
  }
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return served_policies.tokenizer(tmp_path_factory.mktemp("t") / "nano")


@pytest.fixture(scope="module")
def policy(tokenizer):
  engine = served_policies.engine(tokenizer, cuts=True)
  made = served_policies.policy(tokenizer, engine)
  yield made
  made.scheduler.close()


@pytest.fixture(scope="module")
def url(policy, tmp_path_factory):
  pool = tmp_path_factory.mktemp("pool") / "pool.sqlite"
  with served_policies.served(policy, pool) as address:
    yield address


@pytest.fixture(scope="module")
def client(url):
  with openai.OpenAI(
    base_url=f"{url}/v1", api_key="any", max_retries=0,
    http_client=openai.DefaultHttpxClient(verify=False),
  ) as made:  # fmt: skip
    yield made


def ask(client, **more):
  more = {"seed": 3, "max_tokens": 12, "logprobs": True, **more}
  return client.chat.completions.create(
    model="nano", messages=SAY, extra_body={"return_token_ids": True}, **more
  )


@pytest.mark.slow
def test_top_p_samples_from_the_likeliest_tokens(client):
  """So few that one is left: it is drawn for sure."""
  for seed in (1, 2):
    found = ask(client, seed=seed, top_p=1e-4).choices[0]
    assert all(one.logprob == 0 for one in found.logprobs.content)
    greedy = ask(client, temperature=0).choices[0]
    assert found.token_ids == greedy.token_ids
  assert ask(client, top_p=1).choices == ask(client).choices


def test_an_answer_that_has_to_call_a_tool_begins_with_the_call(client):
  begun = '<tool_call>{"name": "look", "arguments":'
  for choice in ("required", {"type": "function", "function": LOOK_NAME}):
    found = ask(client, tools=LOOK, tool_choice=choice)
    free = ask(client, tools=LOOK)
    more = len(found.prompt_token_ids) - len(free.prompt_token_ids)
    assert found.prompt_token_ids[:-more] == free.prompt_token_ids
    assert found.usage.prompt_tokens == len(found.prompt_token_ids)
    message = found.choices[0].message
    assert message.tool_calls or message.content.startswith(begun)
    events = [
      e.choices[0].delta
      for e in ask(client, tools=LOOK, tool_choice=choice, stream=True)
    ]
    text = "".join(event.content or "" for event in events)
    assert message.tool_calls or text == message.content


@pytest.mark.parametrize("dialect", typing.get_args(tool_dialects.Dialect))
def test_what_a_forced_call_begins_with_is_read_as_one(tokenizer, dialect):
  policy = answers.Policy(
    "nano", tokenizer, None, context=99, max_new_tokens=9,
    dialect=dialect,
  )  # fmt: skip
  tools = [
    schema.Tool(function={"name": n, "parameters": {"properties": {"at": {}}}})
    for n in ("look", "lock")
  ]
  for opened in (False, True):
    begun = answers.begun(policy, "look", tools, opened)
    of = [one.function.model_dump() for one in tools]
    whole = tool_dialects.spell("look", {"at": "door"}, dialect, tools=of)
    start = begun.rpartition("</think>\n\n")[2]
    assert whole.startswith(start)
    answer = answers.Answer(policy.tokenizer, (), (), begun)
    answer.text = whole[len(start) :]
    found = answers.called(policy, answer, tools, opened)
    want = ("look", {"at": "door"})
    if dialect == "action":  # It names no tools.
      want = ("action", {"action": "door"})
    assert [(c.name, dict(c.arguments)) for c in found] == [want]
  # Of several tools the policy chooses.
  either = answers.begun(policy, "", tools, opened=False)
  assert whole.startswith(either)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"top_p": 0.5}, "top_p=0.5: what a session records"),
    ({"tools": LOOK, "tool_choice": "required"}, "tool_choice: a session"),
  ],
)
def test_sessions_record_neither(url, more, message):
  with (
    agent_calls.client_of(agent_calls.make(url)) as own,
    pytest.raises(openai.BadRequestError, match=message),
  ):
    ask(own, **more)


def test_an_engine_of_runs_takes_the_whole_softmax_alone(tokenizer):
  engine = served_policies.engine(tokenizer)
  with pytest.raises(ValueError, match="samples from the whole softmax"):
    engine.submit([types.Request("a", np.arange(3), (1,), 2, 1.0, top_p=0.5)])


@pytest.mark.parametrize(
  ("name", "taken", "refused"),
  [
    ("top_k", -1, 5),
    ("min_p", 0.0, 0.1),
    ("repetition_penalty", 1.0, 1.1),
    ("frequency_penalty", 0.0, 0.5),
    ("stop_token_ids", [], [5]),
    ("response_format", {"type": "text"}, {"type": "json_object"}),
  ],
)
def test_what_is_not_supported_is_taken_where_it_changes_nothing(
  url, name, taken, refused
):
  body = {"model": "nano", "max_tokens": 1}
  for path, more in (
    ("chat/completions", {"messages": SAY}), ("completions", {"prompt": "a"}),
  ):  # fmt: skip
    for value, status in ((taken, 200), (refused, 400)):
      found = agent_calls.send(
        f"{url}/v1/{path}", json=body | more | {name: value}
      )
      assert found.status_code == status, found.text
      assert status == 200 or found.json()["error"]["param"].startswith(name)
