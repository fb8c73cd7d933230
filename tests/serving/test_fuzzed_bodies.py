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
  """Path and schema of each endpoint that takes a body."""
  for path, methods in sorted(found["paths"].items()):
    body = methods.get("post", {}).get("requestBody")
    if body is not None and path.startswith(below):
      yield path, body["content"]["application/json"]["schema"]


def fuzz(url, headers, examples, fill=str, below="/"):
  found = described(url)
  defs = found["components"]["schemas"]
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
