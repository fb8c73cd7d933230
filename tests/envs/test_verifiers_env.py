"""The parts of verifiers' adapter that need no verifiers.

`tests/standards/test_verifiers.py` plays the package itself.
"""

import json
import queue
import threading
import urllib.error
import urllib.request

import hypothesis
import pytest
from hypothesis import strategies as st

from steppo_jax.envs import base
from steppo_jax.envs.verifiers import endpoint
from steppo_jax.envs.verifiers import env as lib
from steppo_jax.training import config, players

TOOLS = [
  {"function": {"name": name, "description": "Does.", "parameters": {}}}
  for name in ("add", "cut")
]
CALL = '<tool_call>{"name": "add", "arguments": {"n": 1}}</tool_call>'


def asked(messages=(), tools=TOOLS):
  return endpoint.Asked(list(messages), tools, queue.SimpleQueue())


def test_without_the_package_it_says_what_to_install():
  with pytest.raises(RuntimeError, match="needs the package verifiers"):
    base.make("verifiers", taskset="any")
  with pytest.raises(ValueError, match=r"needs env\.options=taskset="):
    players.recipes(config.EnvConfig("verifiers"))


PARTS = st.sampled_from((
  CALL, CALL.replace("add", "cut"), CALL.replace("add", "fly"),
  "<tool_call>", "</tool_call>", "{", '"name"', "<think>", "</think>", " ",
  "a", '<tool_call>{"name": "add", "arguments": {"n": 1}}', "\ud800",
  '<tool_call>[{"name": "add", "arguments": {}}]</tool_call>',
))  # fmt: skip


@hypothesis.given(st.lists(PARTS, max_size=6).map("".join))
def test_an_answer_is_a_message_or_is_refused(text):
  try:
    message = lib._message(text, asked())
  except ValueError:
    assert "<tool_call>" in text
    return
  assert message["role"] == "assistant"
  assert "<tool_call>" not in message["content"]
  for call in message.get("tool_calls", ()):
    assert call["function"]["name"] in ("add", "cut")
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
  # Without tools nothing is a call, and nothing is refused.
  assert "tool_calls" not in lib._message(text, asked(tools=[]))


def test_calls_have_names_that_no_other_turn_has():
  before = {"role": "assistant", "content": "x"}
  names = [
    call["id"]
    for turns in range(3)
    for call in lib._message(CALL + CALL, asked([before] * turns))["tool_calls"]
  ]
  assert names == [f"call_{t}_{k}" for t in range(3) for k in range(2)]


MESSAGES = st.lists(
  st.tuples(
    st.sampled_from(("system", "user", "assistant", "tool")),
    st.integers(0, 99),
  ),
  max_size=8,
)


@hypothesis.given(MESSAGES)
def test_what_is_seen_is_what_is_new(drawn):
  said = [{"role": r, "content": f"<{n}>"} for r, n in drawn]
  seen = lib._seen(asked(said, tools=[]))
  new = []
  for role, number in drawn:
    new = [] if role == "assistant" else [*new, f"<{number}>"]
  assert seen == "\n\n".join(new)
  first = lib._seen(asked(said))
  assert ("- add: Does." in first) == all(r != "assistant" for r, _ in drawn)


def test_a_picture_is_refused():
  picture = {"role": "user", "content": [{"type": "image_url"}]}
  with pytest.raises(ValueError, match="a part of the type image_url"):
    lib._seen(asked([picture]))


def post(url, **body):
  request = urllib.request.Request(
    f"{url}/chat/completions", json.dumps({"messages": []} | body).encode()
  )
  with urllib.request.urlopen(request, timeout=30) as answer:
    return answer.read().decode()


def test_a_call_waits_for_its_answer_and_is_told_whole_or_in_events():
  come = queue.SimpleQueue()
  take = lambda name, call: name == "now" and (come.put(call) or True)
  served = endpoint.Endpoint(take)
  try:
    message = lib._message(f"I add. {CALL}", asked())
    found = []
    for stream in (False, True):
      thread = threading.Thread(
        target=lambda: found.append(
          post(served.url, model="now", stream=stream)  # noqa: B023
        )
      )
      thread.start()
      come.get(timeout=30).answers.put(message)
      thread.join(30)
    whole, events = found
    choice = json.loads(whole)["choices"][0]
    assert choice["message"] == message
    assert choice["finish_reason"] == "tool_calls"
    first, last, done = [x for x in events.split("\n\n") if x]
    delta = json.loads(first.removeprefix("data: "))["choices"][0]["delta"]
    assert delta["content"] == message["content"]
    assert delta["tool_calls"][0]["index"] == 0
    ended = json.loads(last.removeprefix("data: "))["choices"][0]
    assert ended["finish_reason"] == "tool_calls"
    assert done == "data: [DONE]"
    with pytest.raises(urllib.error.HTTPError) as raised:
      post(served.url, model="before")
    assert raised.value.code == 410
    raised.value.close()
  finally:
    served.close()


@hypothesis.given(st.permutations(["begin", "end", *range(6)]))
@hypothesis.settings(max_examples=8, deadline=None)
def test_every_call_is_answered_whenever_the_episode_is_left(order):
  calls, told, threads = endpoint.Calls(), [], []
  before, _ = calls.begin()
  name = before

  def call():
    one = asked()
    told.append(one.answers.get(timeout=30) if calls.take(name, one) else None)

  for turn in order:
    if turn == "begin":
      calls.end()
      name, put = calls.begin()
      put("behind")
    elif turn == "end":
      calls.end()
    else:
      threads.append(threading.Thread(target=call))
      threads[-1].start()
  calls.end()
  for thread in threads:
    thread.join(30)
  assert told == [None] * 6
  assert not calls.take(name, asked())
  assert calls.begin()[0] not in (name, before)
