"""What agents do with a gateway: real clients, and nothing but HTTP."""

import functools

import httpx
import openai

from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries

# Certificates, which nobody asks for here, take longer to load than an answer.
get = functools.partial(httpx.get, verify=False, timeout=60)
send = functools.partial(httpx.post, verify=False, timeout=60)


def make(url, **body):
  """A session of a gateway."""
  body = {"task": {"uid": "t"}} | body
  found = send(f"{url}/sessions", json=body)
  assert found.status_code == 200, found.text
  return found.json()


def client_of(made):
  """What an agent speaks with."""
  return openai.OpenAI(
    base_url=made["base_url"],
    api_key=made["api_key"],
    max_retries=0,
    http_client=openai.DefaultHttpxClient(verify=False),
  )


def post(made, what, **body):
  """Rewards, labels and the end of a session."""
  return send(
    f"{made['url']}/{what}", json=body,
    headers={"Authorization": f"Bearer {made['api_key']}"},
  )  # fmt: skip


def ask(client, messages, **more):
  """A call of the model."""
  return client.chat.completions.create(
    model="any", messages=messages,
    extra_body={"return_token_ids": True}, **more,
  )  # fmt: skip


def user(text):
  """A message."""
  return {"role": "user", "content": text}


def recorded(made, pool):
  """The session's episode, as the learner gets it."""
  with pool_lib.Pool(pool) as store:
    (found,) = pool_entries.trajectories(store, [made["id"]])
  return found
