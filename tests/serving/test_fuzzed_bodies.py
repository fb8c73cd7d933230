"""Bodies made of the schema that the server publishes: none breaks it."""

import functools

import agent_calls
import httpx
import hypothesis
import json_values
import marks
import pytest
import served_policies
import weight_servers

from steppo_jax.serving import session as session_lib

LIMITS = session_lib.Limits(
  max_new_tokens=served_policies.NEW_TOKENS, temperature=1.0, turns=6
)
# What a server answers that is not broken: it is full, or has no task.
FINE = {429: None, 503: "no_task"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
  folder = tmp_path_factory.mktemp("t")
  tokenizer = served_policies.tokenizer(folder / "nano")
  policy = served_policies.policy(tokenizer, served_policies.engine(tokenizer))
  with served_policies.served(
    policy, folder / "pool.sqlite", limits=LIMITS
  ) as address:
    yield address
  policy.scheduler.close()


def described(url):
  return agent_calls.get(f"{url}/openapi.json").json()


def endpoints(found, below="/"):
  """Path and schema of each endpoint that takes a body.

  That which ends a session comes last: it takes nothing more afterwards.
  """
  order = lambda one: (one[0].endswith("/finish"), one[0])
  for path, methods in sorted(found["paths"].items(), key=order):
    body = methods.get("post", {}).get("requestBody")
    if body is not None and path.startswith(below):
      yield path, body["content"]["application/json"]["schema"]


def fuzz(url, headers, examples, fill=str, below="/"):
  found = described(url)
  defs = found["components"]["schemas"]
  for one in defs.values():
    if "model" in one.get("properties", {}):  # All else is refused at once.
      one["properties"]["model"] = {"const": "nano"}
  count = 0
  with httpx.Client(verify=False, timeout=120, headers=headers) as client:
    for path, schema in endpoints(found, below):
      count += 1
      values = json_values.of(schema, defs)

      @hypothesis.settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
      )  # fmt: skip
      @hypothesis.given(values | json_values.nearly(values) | json_values.ANY)
      def send(path, body):
        text = json_values.text(body)
        with client.stream("POST", url + fill(path), content=text) as answer:
          told = answer.read()
        status = answer.status_code
        assert status < 500 or status in FINE, (status, told, body)
        if status >= 400 and not path.startswith("/v1/messages"):
          error = answer.json()["error"]
          assert isinstance(error["message"], str)
          assert FINE.get(status) in (None, error.get("code"))

      functools.partial(send, path)()
  return count


@pytest.mark.parametrize("examples", marks.some(2, slow=(300,)))
def test_no_body_breaks_the_server(url, examples):
  made = agent_calls.make(url)
  key = {"Authorization": f"Bearer {made['api_key']}"}
  # Without a session's key, and then as that session.
  assert fuzz(url, {}, examples) == 9
  fill = lambda path: path.replace("{session}", made["id"])
  assert fuzz(url, key, examples, fill) == 9
  assert agent_calls.get(f"{url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
  ("number", "status"),
  [(2, 200), (1 << 31, 400), (1 << 63, 400), (10**30, 400)],
)
def test_numbers_that_no_array_holds_are_refused(url, number, status):
  model = agent_calls.get(f"{url}/v1/models").json()["data"][0]["id"]
  stops = {"max_tokens": 1, "stop_token_ids": [number]}
  asked = [
    ("/inference/v1/generate", {"token_ids": [number]}),
    ("/inference/v1/generate", {"token_ids": [1], "sampling_params": stops}),
    ("/v1/completions", {"model": model, "prompt": [number], "max_tokens": 1}),
    ("/sessions", {"task": {"uid": "a", "golden_steps": number}}),
  ]
  for path, body in asked:
    answer = httpx.post(url + path, json=body)
    assert answer.status_code == status, (path, answer.text)


@pytest.mark.parametrize("depth", [50, 150, 400, 700, 100_000])
def test_json_in_a_string_is_no_deeper_than_what_is_read_of_it(url, depth):
  """Such as arguments of calls: answered, or refused in the form asked for."""
  inner = json_values.nested(depth)
  call = {"id": "c", "function": {"name": "f", "arguments": inner}}
  said = {"role": "assistant", "content": "", "tool_calls": [call]}
  chat = {"model": "nano", "messages": [agent_calls.user("a"), said]}
  made = agent_calls.make(url)
  bearer = {"Authorization": f"Bearer {made['api_key']}"}
  own = agent_calls.send(f"{url}/v1/completions", headers=bearer, json={
    "model": "m", "prompt": "a", "max_tokens": 1,
  })  # fmt: skip
  assert own.status_code == 200
  end = {"status": "truncated", "messages": chat["messages"]}
  for path, headers, body in (
    ("/v1/chat/completions", {}, chat),
    ("/v1/chat/completions", bearer, chat),
    (f"/sessions/{made['id']}/finish", bearer, end),
  ):
    answer = agent_calls.send(url + path, headers=headers, json=body)
    want = {200, 400} if depth == 50 else {400}
    assert answer.status_code in want, (path, answer.text)
    if answer.status_code == 400:  # The prompt may be too long as well.
      error = answer.json()["error"]
      assert "nested" in error["message"] or depth == 50, error


@pytest.mark.parametrize("depth", [50, 110, 190, 250, 100_000])
@pytest.mark.parametrize("field", ["parameters", "input", "payload"])
def test_values_of_any_form_are_no_deeper_than_what_is_read(url, field, depth):
  deep = json_values.nested(depth)
  chat = {"model": "nano", "messages": [agent_calls.user("a")]}
  made = agent_calls.make(url)
  use = {"type": "tool_use", "id": "c", "name": "f", "input": "DEEP"}
  path, body = {
    "parameters": ("/v1/chat/completions", chat | {
      "tools": [{"function": {"name": "f", "parameters": "DEEP"}}]}),
    "input": ("/v1/messages", chat | {"max_tokens": 1, "messages": [
      {"role": "assistant", "content": [use]}, *chat["messages"]]}),
    "payload": ("/sessions", {"task": {"uid": "t", "payload": "DEEP"}}),
  }[field]  # fmt: skip
  text = json_values.text(body).replace(b'"DEEP"', deep.encode())
  for key in ("any", made["api_key"]):
    if key != "any" and field == "payload":
      continue
    answer = agent_calls.send(
      url + path, content=text, headers={"Authorization": f"Bearer {key}"}
    )
    assert answer.status_code in ({200, 400} if depth == 50 else {400})
    if answer.status_code == 400:
      error = answer.json()["error"]
      assert field != "input" or answer.json()["type"] == "error"
      known = "nested", "recursion limit", "context is"
      assert any(one in error["message"] for one in known), error


def test_no_body_breaks_what_takes_weights():
  with weight_servers.serving() as (served,):
    headers = {"Authorization": f"Bearer {weight_servers.KEY}"}
    fill = lambda path: path.replace("{digest}", "0" * 64)
    assert fuzz(served.url, headers, 12, fill, "/weights") == 2
    assert agent_calls.get(f"{served.url}/health").json() == {"status": "ok"}


def test_what_is_published_is_what_is_taken(url):
  found = described(url)
  assert found["openapi"].startswith("3.1")
  paths = [path for path, _ in endpoints(found)]
  assert "/v1/chat/completions" in paths
  assert "/sessions/{session}/finish" in paths
  chat = found["components"]["schemas"]["ChatRequest"]
  assert sorted(chat["required"]) == ["messages", "model"]
