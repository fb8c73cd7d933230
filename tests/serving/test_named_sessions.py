"""Sessions that begin with a call whose X-Session-ID nobody knows."""

import concurrent.futures
import dataclasses

import agent_calls
import openai
import pytest
import served_policies

from steppo_jax import types
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries
from steppo_jax.serving import session as session_lib

KEY = "the server's"
LIMITS = session_lib.Limits(
  max_new_tokens=served_policies.NEW_TOKENS, temperature=1.0, turns=6,
  by_header=True,
)  # fmt: skip
SAY = [agent_calls.user("hello")]


@pytest.fixture
def pool(tmp_path):
  """Two tasks wait."""
  with pool_lib.Pool(tmp_path / "pool.sqlite") as made:
    for n in range(2):
      task = types.Task(f"task{n}", "test", "test", {})
      made.issue(f"g{n}", task, [(f"e{n}", (0, n), 0)])
    yield made


@pytest.fixture
def url(policy, pool):
  with served_policies.served(
    policy, pool, api_key=KEY, limits=LIMITS
  ) as address:
    yield address


def client(url, name, key=KEY):
  return openai.OpenAI(
    base_url=f"{url}/v1", api_key=key, max_retries=0,
    default_headers={"X-Session-ID": name},
    http_client=openai.DefaultHttpxClient(verify=False),
  )  # fmt: skip


def send(url, name, what, key=KEY, **body):
  return agent_calls.send(
    f"{url}/sessions/{name}/{what}", json=body,
    headers={"Authorization": f"Bearer {key}"},
  )  # fmt: skip


def test_an_unknown_name_begins_a_session_and_a_known_one_goes_on(url, pool):
  with client(url, "roll/1") as one, client(url, "roll/2") as other:
    first = agent_calls.ask(one, SAY)
    assert [card.id for card in other.models.list().data] == ["nano"]
    assert [e.state for e in pool_entries.entries(pool)] == [
      "running", "issued",
    ]  # fmt: skip
    agent_calls.ask(other, SAY)
    said = [{"role": "assistant", "content": first.choices[0].message.content}]
    second = agent_calls.ask(one, [*SAY, *said, agent_calls.user("go on")])
    read = first.prompt_token_ids + first.choices[0].token_ids
    assert second.prompt_token_ids[: len(read)] == read
    with (
      client(url, "roll-3") as third,
      pytest.raises(openai.InternalServerError, match="no task waits"),
    ):
      agent_calls.ask(third, SAY)
  states = {e.uid: e.state for e in pool_entries.entries(pool)}
  assert states == {"e0": "running", "e1": "running"}


def test_rewards_and_ends_are_told_by_the_name_too(url, pool):
  with client(url, "mine") as one:
    agent_calls.ask(one, SAY)
    assert send(url, "mine", "rewards", step=0, reward=2.0).status_code == 200
    assert send(url, "mine", "finish", status="terminated").status_code == 200
    with pytest.raises(openai.APIStatusError, match="is finished") as raised:
      agent_calls.ask(one, SAY)
    assert raised.value.status_code == 410
  (found,) = pool_entries.trajectories(pool, ["e0"])
  assert [step.reward for step in found.steps] == [2.0]


def test_what_is_not_theirs_is_refused(url):
  for key in ("wrong", ""):
    with (
      client(url, "x", key or "-") as one,
      pytest.raises(openai.AuthenticationError),
    ):
      agent_calls.ask(one, SAY)
    assert send(url, "x", "rewards", key or "-", reward=1.0).status_code == 401
  # A name begins with a call of the model, and with nothing else.
  assert send(url, "x", "rewards", reward=1.0).status_code == 404
  assert send(url, "e0", "rewards", reward=1.0).status_code == 404
  with (
    client(url, "x" * 101) as one,
    pytest.raises(openai.BadRequestError, match="X-Session-ID must have"),
  ):
    agent_calls.ask(one, SAY)


@pytest.mark.slow
def test_first_calls_at_the_same_time_begin_one_session(url, pool):
  with client(url, "same") as one:
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
      found = list(
        threads.map(lambda n: agent_calls.ask(one, SAY, seed=n), range(6))
      )
    assert len(found) == 6
  states = [e.state for e in pool_entries.entries(pool)]
  assert states == ["running", "issued"]


def test_it_is_off_unless_asked_for(policy, pool):
  limits = dataclasses.replace(LIMITS, by_header=False)
  with (
    served_policies.served(policy, pool, api_key=KEY, limits=limits) as url,
    client(url, "mine") as one,
    pytest.raises(openai.AuthenticationError),
  ):
    agent_calls.ask(one, SAY)
  assert {e.state for e in pool_entries.entries(pool)} == {"issued"}


def served_again(policy, pool):
  """A gateway that is started anew: its run gives out what was under way."""
  pool.reclaim()
  return served_policies.served(policy, pool, api_key=KEY, limits=LIMITS)


def states(pool):
  return {e.uid: (e.state, e.attempts) for e in pool_entries.entries(pool)}


def test_a_name_stays_that_of_its_episode_when_the_gateway_is_started_anew(
  policy, pool
):
  end = {"status": "terminated", "reward": 1.0}
  with served_policies.served(
    policy, pool, api_key=KEY, limits=LIMITS
  ) as url, client(url, "done") as done, client(url, "cut") as cut:  # fmt: skip
    agent_calls.ask(done, SAY)
    agent_calls.ask(cut, SAY)
    told = send(url, "done", "finish", **end).json()
  with served_again(policy, pool) as url:
    assert send(url, "done", "finish", **end).json() == told
    # The conversation that was under way is lost, and is no other's now.
    with (
      client(url, "cut") as cut,
      pytest.raises(openai.APIStatusError, match="not under way") as raised,
    ):
      agent_calls.ask(cut, SAY)
    assert raised.value.status_code == 410
    assert states(pool) == {"e0": ("ready", 1), "e1": ("issued", 1)}
    with client(url, "next") as other:
      agent_calls.ask(other, SAY)
    assert send(url, "cut", "finish", **end).status_code == 410
    assert send(url, "next", "finish", **end).status_code == 200
    assert send(url, "unknown", "finish", **end).status_code == 404
  assert states(pool) == {"e0": ("ready", 1), "e1": ("ready", 2)}


@pytest.mark.parametrize("body", [{}, {"task": {"uid": "own"}}])
def test_a_session_is_begun_once_though_the_gateway_is_started_anew(
  policy, pool, body
):
  body = {"request_id": "r", **body}
  make = lambda url, more: agent_calls.send(
    f"{url}/sessions", json=body | more,
    headers={"Authorization": f"Bearer {KEY}"},
  )  # fmt: skip
  with served_policies.served(policy, pool, api_key=KEY, limits=LIMITS) as url:
    if "task" in body:  # What cannot be begun is not there twice, either.
      fail = "BEFORE UPDATE ON episodes BEGIN SELECT RAISE(ABORT, 'full'); END"
      with pool.file.transaction() as run:
        run(f"CREATE TRIGGER broken {fail}")
      assert make(url, {}).status_code == 503
      with pool.file.transaction() as run:
        run("DROP TRIGGER broken")
    first = make(url, {}).json()
    assert make(url, {}).json() == first
    assert make(url, {"notes": "x"}).status_code == 409
  with served_again(policy, pool) as url:
    again = make(url, {}).json()
    assert (again["id"], again["attempt"]) == (first["id"], 2)
    assert again["api_key"] != first["api_key"]
    assert make(url, {}).json() == again
    assert make(url, {"notes": "x"}).status_code == 409
    agent_calls.post(again, "finish", status="error").raise_for_status()
  with served_again(policy, pool) as url:
    assert make(url, {}).status_code == 410
  others = [state for uid, state in states(pool).items() if uid != first["id"]]
  assert set(others) == {("issued", 0)}
