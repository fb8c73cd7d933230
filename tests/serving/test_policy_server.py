"""A policy served in a process of its own, to the clients that people use."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time

import httpx
import jax
import json_values
import numpy as np
import openai
import pytest
import vocabularies

from steppo_jax import types
from steppo_jax.models import presets, transformer
from steppo_jax.models.formats import hub
from steppo_jax.prompts import chat
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options
from steppo_jax.tokenizer import loading

SAY = [{"role": "user", "content": "go to shelf 1"}]
CONTEXT = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model of random weights with a chat template."""
  path = tmp_path_factory.mktemp("served") / "nano"
  sizes = presets.get("nano", 410)
  hub.save(path, sizes, transformer.init(sizes, jax.random.key(0)))
  inner = vocabularies.byte_level()
  vocabularies.write_folder(path, inner, template=vocabularies.CHATML)
  return path


@contextlib.contextmanager
def serving(folder, *flags, key=None):
  """The server and its address."""
  command = [
    sys.executable, "-m", "steppo_jax", "serve", "policy", "--weights",
    str(folder), "--context", str(CONTEXT), *map(str, flags),
  ]  # fmt: skip
  variables = os.environ | ({"STEPPO_API_KEY": key} if key else {})
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=variables
  )
  try:
    line = process.stdout.readline()
    assert line.startswith("listening on http://"), line
    yield process, line.split()[-1]
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def url(folder):
  with serving(folder, "--slots", 4) as (_, address):
    yield address


@pytest.fixture(scope="module")
def client(url):
  with openai.OpenAI(
    base_url=f"{url}/v1", api_key="any", max_retries=0
  ) as made:
    yield made


@pytest.fixture(scope="module")
def local(folder):
  """The same engine in this process: what a seed has to give."""
  tokenizer = loading.load(folder)
  sizes = presets.get("nano", 410)
  made = engine_lib.SlotEngine(
    dataclasses.replace(sizes, num_ids=tokenizer.num_ids),
    options.SamplerConfig(num_slots=1, prefill_lengths=(16,), burst=4),
    context=CONTEXT,
    max_new_tokens=64,
    end_of_turn_id=tokenizer.end_of_turn_id,
    seed=0,
  )
  made.set_params(transformer.init(sizes, jax.random.key(0)), 0)
  prompts = chat.Chat(tokenizer)

  def answer(messages, *, seed, limit, temperature=1.0):
    ids = prompts.prompt(messages).ids
    request = types.Request(
      f"{seed}", ids, (0, seed), limit, temperature, prompts.stop_ids
    )
    (response,) = made.generate([request])
    made.release(f"{seed}")
    return ids, response

  return tokenizer, answer


def ask(client, messages=SAY, **more):
  more = {"seed": 3, "max_tokens": 12, "logprobs": True, **more}
  body = {"return_token_ids": True}
  return client.chat.completions.create(
    model="nano", messages=messages, extra_body=body, **more
  )


def test_an_answer_is_what_the_engine_gives_token_by_token(client, local):
  tokenizer, answer = local
  for seed in (1, 2, 3):
    found = ask(client, seed=seed)
    prompt_ids, want = answer(SAY, seed=seed, limit=12)
    choice = found.choices[0]
    assert found.prompt_token_ids == prompt_ids.tolist()
    assert choice.token_ids == want.response_ids.tolist()
    logp = [one.logprob for one in choice.logprobs.content]
    np.testing.assert_allclose(logp, want.behaviour_logp, rtol=1e-5)
    assert choice.finish_reason == want.stop_reason
    assert found.usage.prompt_tokens == len(prompt_ids)
    assert found.usage.completion_tokens == len(want.response_ids)
    ids = want.response_ids
    text = tokenizer.decode(ids[:-1] if want.stop_reason == "stop" else ids)
    assert choice.message.content == text


def test_a_stream_is_the_same_answer_in_pieces(client):
  whole = ask(client, seed=5, max_tokens=30)
  chunks = list(
    ask(
      client, seed=5, max_tokens=30, stream=True,
      stream_options={"include_usage": True},
    )
  )  # fmt: skip
  *events, last = chunks
  texts = [c.choices[0].delta.content or "" for c in events]
  assert "".join(texts) == whole.choices[0].message.content
  assert len([t for t in texts if t]) > 1
  ids = [i for c in events for i in c.choices[0].token_ids or ()]
  assert ids == whole.choices[0].token_ids
  assert events[0].choices[0].delta.role == "assistant"
  assert events[0].prompt_token_ids == whole.prompt_token_ids
  assert events[-1].choices[0].finish_reason == whole.choices[0].finish_reason
  assert last.usage == whole.usage
  assert not last.choices


def test_a_stop_text_ends_an_answer_before_it(client):
  whole = ask(client, seed=5, max_tokens=30).choices[0].message.content
  stop = whole[6:9]
  want = whole[: whole.index(stop)]
  for stream in (False, True):
    found = ask(client, seed=5, max_tokens=30, stop=[stop], stream=stream)
    if stream:
      events = list(found)
      text = "".join(e.choices[0].delta.content or "" for e in events)
      reason = events[-1].choices[0].finish_reason
    else:
      text = found.choices[0].message.content
      reason = found.choices[0].finish_reason
    assert (text, reason) == (want, "stop")


def test_completions_take_texts_and_token_ids(client, local):
  tokenizer, _ = local
  text = "go to shelf 1"
  ids = tokenizer.encode(text).tolist()
  more = {"max_tokens": 8, "seed": 1, "temperature": 0.7, "logprobs": 0}
  found = [
    client.completions.create(
      model="nano", prompt=prompt, extra_body={"return_token_ids": True}, **more
    )
    for prompt in (text, ids)
  ]
  for one in found:
    assert one.choices[0].prompt_token_ids == ids
    assert len(one.choices[0].token_ids) == one.usage.completion_tokens
  assert found[0].choices[0].token_ids == found[1].choices[0].token_ids
  assert len(found[0].choices[0].logprobs.token_logprobs) == 8
  events = client.completions.create(
    model="nano", prompt=ids, stream=True, **more
  )
  text = "".join(event.choices[0].text for event in events)
  assert text == found[0].choices[0].text


def test_token_ids_go_in_and_come_out(url, local):
  tokenizer, _ = local
  ids = tokenizer.encode("go to shelf 1").tolist()
  body = {
    "model": "nano", "token_ids": ids,
    "sampling_params": {"temperature": 1.0, "max_tokens": 6, "seed": 9},
  }  # fmt: skip
  found = httpx.post(f"{url}/inference/v1/generate", json=body).json()
  choice = found["choices"][0]
  told = [one["token"] for one in choice["logprobs"]["content"]]
  assert told == [f"token_id:{i}" for i in choice["token_ids"]]
  assert found["prompt_token_ids"] == ids
  stop = choice["token_ids"][2]
  body["sampling_params"]["stop_token_ids"] = [stop]
  again = httpx.post(f"{url}/inference/v1/generate", json=body).json()
  cut = choice["token_ids"].index(stop) + 1
  assert again["choices"][0]["token_ids"] == choice["token_ids"][:cut]
  assert again["choices"][0]["finish_reason"] == "stop"


def test_many_clients_at_once_get_what_each_gets_alone(client):
  seeds = range(12)
  alone = [ask(client, seed=s).choices[0].token_ids for s in seeds]
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    together = list(
      pool.map(lambda s: ask(client, seed=s).choices[0].token_ids, seeds)
    )
  assert together == alone


def test_a_conversation_is_read_from_where_it_went_on(url, client):
  messages, kept = list(SAY), 0
  for turn in range(3):
    before = metrics(url)
    found = ask(client, messages, seed=turn)
    after = metrics(url)
    names = [f"steppo_tokens_{name}_total" for name in ("prompt", "read")]
    asked, read = (after[name] - before[name] for name in names)
    assert asked == found.usage.prompt_tokens
    # The answer may be encoded in another way than it was sampled.
    assert read <= asked - kept
    kept = asked - 1
    messages += [
      {"role": "assistant", "content": found.choices[0].message.content},
      {"role": "user", "content": "and now?"},
    ]


def metrics(url):
  lines = httpx.get(f"{url}/metrics").text.splitlines()
  pairs = [line.split() for line in lines if not line.startswith("#")]
  return {name: float(value) for name, value in pairs}


def test_who_hangs_up_is_not_sampled_for(url):
  before = metrics(url)
  body = {"model": "nano", "messages": SAY, "temperature": 1.5, "seed": 1}
  with httpx.Client() as made:
    with made.stream(
      "POST", f"{url}/v1/chat/completions", json={**body, "stream": True}
    ) as events:
      next(events.iter_lines())
    with contextlib.suppress(httpx.ReadTimeout):
      made.post(f"{url}/v1/chat/completions", json=body, timeout=0.05)
  deadline = time.monotonic() + 20
  while metrics(url)["steppo_requests_running"]:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  after = metrics(url)
  assert (
    after["steppo_requests_cancelled_total"]
    > before["steppo_requests_cancelled_total"]
  )
  sampled = "steppo_tokens_sampled_total"
  assert after[sampled] - before[sampled] < 200


@pytest.mark.parametrize(
  ("changes", "status", "code", "message"),
  [
    ({"messages": []}, 400, "invalid_request_error", "messages: "),
    ({"messages": "hi"}, 400, "invalid_request_error", "messages: "),
    (
      {"messages": [{"role": "robot", "content": "a"}]},
      400, "invalid_request_error", "messages.0.role",
    ),
    (
      {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
      400, "invalid_request_error", "type",
    ),
    (
      {"messages": [{"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": "[1"}}]}]},
      400, "invalid_request_error", "arguments of the call of f",
    ),
    ({"model": "gpt"}, 404, "model_not_found", "'gpt' is not served"),
    ({"model": None}, 400, "invalid_request_error", "model"),
    ({"n": 2}, 400, "invalid_request_error", "n: "),
    ({"top_p": 0}, 400, "invalid_request_error", "top_p"),
    ({"tool_choice": "required"}, 400, "invalid_request_error",
     "'any tool' is none of []"),
    ({"tool_choice": {"function": {"name": "f"}}, "tools": [
      {"function": {"name": "look"}}]}, 400,
     "invalid_request_error", "'f' is none of ['look']"),
    ({"temperature": -1}, 400, "invalid_request_error", "temperature"),
    ({"temperature": "x"}, 400, "invalid_request_error", "temperature"),
    ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
    ({"max_tokens": 999}, 400, "context_length_exceeded", "is 256 tokens"),
    (
      {"messages": [{"role": "user", "content": "a " * 400}]},
      400, "context_length_exceeded", "the prompt has",
    ),
    ({"stop": [""]}, 400, "invalid_request_error", "stop"),
    ({"seed": 2**70}, 400, "invalid_request_error", "seed"),
    ({"top_logprobs": 5}, 400, "invalid_request_error", "top_logprobs"),
  ],
)  # fmt: skip
def test_a_request_that_is_wrong_is_told_what(
  url, changes, status, code, message
):
  body = {"model": "nano", "messages": SAY, "max_tokens": 2} | changes
  found = httpx.post(f"{url}/v1/chat/completions", json=body)
  error = found.json()["error"]
  assert (found.status_code, error["code"]) == (status, code), error
  assert message in error["message"]
  assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
  "body", [b"", b"{", b"\xff", b"[]", b"null", b"[" * 100_000, b"1" * 5000]
)
def test_a_body_that_is_none_is_refused(url, body):
  for path in ("v1/chat/completions", "v1/completions",
               "inference/v1/generate"):  # fmt: skip
    found = httpx.post(f"{url}/{path}", content=body)
    assert found.status_code == 400, found.text
    assert found.json()["error"]["code"] == "invalid_request_error"


def test_token_ids_that_are_none_are_refused(url):
  for ids, message in (
    ([], "token_ids"),
    ([-1], "token_ids.0"),
    ([10**6], "token id 1000000 is not in the vocabulary of 354"),
    ([2**31 - 1], "not in the vocabulary"),
    ([2**31], "token_ids.0"),
  ):
    body = {"token_ids": ids}
    found = httpx.post(f"{url}/inference/v1/generate", json=body)
    assert found.status_code == 400
    assert message in found.json()["error"]["message"]


def test_what_is_served_is_told(url, client):
  (card,) = client.models.list().data
  assert (card.id, card.max_model_len) == ("nano", CONTEXT)
  assert client.models.retrieve("nano").id == "nano"
  with pytest.raises(openai.NotFoundError, match="not served here"):
    client.models.retrieve("other")
  with pytest.raises(openai.NotFoundError, match="there is no POST"):
    client.embeddings.create(model="nano", input="a", encoding_format="float")
  assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_a_full_server_turns_away_and_a_key_is_asked_for(folder):
  with serving(folder, "--slots", 1, "--max-waiting", 1, key="se cret") as (
    process, url,
  ):  # fmt: skip
    found = httpx.get(f"{url}/v1/models")
    assert found.status_code == 401
    assert found.json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{url}/health").status_code == 200

    async def together():
      async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="se cret", max_retries=0
      ) as client:
        asked = [ask(client, max_tokens=100, seed=s) for s in range(8)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(together())
    refused = [one for one in found if isinstance(one, Exception)]
    assert {type(one) for one in refused} == {openai.RateLimitError}
    assert 1 <= len(refused) <= 7
    assert refused[0].response.headers["retry-after"] == "1"
    # All that was taken in was answered.
    answered = metrics(url)["steppo_requests_answered_total"]
    assert answered == 8 - len(refused)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) in (0, -signal.SIGTERM)


CALL = '<tool_call>{"name": "look", "arguments": {"at": "shelf"}}</tool_call>'


def test_calls_of_tools_are_read(folder):
  """The weights are random: what is read is the text, not the model."""
  from steppo_jax.serving import answers, schema

  policy = answers.Policy(
    "nano", loading.load(folder), None, context=CONTEXT, max_new_tokens=9
  )
  tool = schema.Tool(
    function={"name": "look", "parameters": {"properties": {"at": {}}}}
  )
  for text, want in (
    (CALL, [("look", {"at": "shelf"})]),
    (f"So: {CALL}{CALL}", [("look", {"at": "shelf"})] * 2),
    (f"<think>{CALL}</think>no", []),
    ("<tool_call>{", []),
    # A policy that repeats itself: no client could send such a call back.
    (CALL.replace('"shelf"', json_values.nested(400)), []),
    ("no", []),
  ):
    answer = answers.Answer(policy.tokenizer, (), ())
    answer.text = text
    found = answers.called(policy, answer, [tool], opened=False)
    assert [(c.name, dict(c.arguments)) for c in found] == want
    assert not answers.called(policy, answer, None, opened=False)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--weights", "nowhere"), "nowhere"),
    (("--context", 1), "--context=1 must be at least 2"),
    (("--slots", 0), "--slots=0 must be at least 1"),
    (("--dialect", "xml"), "dialect='xml' is none of"),
    (("--host", "0.0.0.0"), "reached from elsewhere: set STEPPO_API_KEY"),
    (("--host", "192.0.2.1", "--api-key", "a"), "cannot be listened on"),
    (("--port", 99999), "--port=99999 cannot be listened on"),
    (("--accept-weights",), "set STEPPO_API_KEY to a secret"),
    (
      ("--accept-weights", "--api-key", "a", "--tensor", 2),
      "--accept-weights and --tensor=2 do not go together yet",
    ),
    (("--tensor", 16), "sampler.tensor=16, but there are 8 devices"),
    (("--max-waiting", 0), "max_waiting=0 must be at least 1"),
  ],
)
def test_what_cannot_be_served_is_told_at_once(
  folder, capsys, monkeypatch, flags, message
):
  from steppo_jax import __main__ as cli

  def served(*_):
    raise AssertionError("it is served")

  monkeypatch.setattr("uvicorn.Server.run", served)
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)
  command = ["serve", "policy", "--weights", str(folder), *map(str, flags)]
  assert cli.main(command) == 2
  said = " ".join(capsys.readouterr().err.split())
  assert message in said
  assert "Traceback" not in said
