"""What sessions refuse: keys of others, doubled writes, bodies of no form."""

import dataclasses
import functools
import json
import pathlib
import time

import agent_calls
import httpx
import hypothesis
import openai
import pytest
import served_policies
from hypothesis import strategies as st

from steppo_jax import __main__ as cli
from steppo_jax import types
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries, pool_file
from steppo_jax.serving import session as session_lib

LIMITS = session_lib.Limits(
  max_new_tokens=served_policies.NEW_TOKENS, temperature=1.0, turns=6
)


@pytest.fixture
def pool(tmp_path):
  return tmp_path / "pool.sqlite"


@pytest.fixture
def url(policy, pool):
  with served_policies.served(policy, pool, limits=LIMITS) as address:
    yield address


def status(made, *, key=None, path="", **headers):
  bearer = {"Authorization": f"Bearer {key or made['api_key']}"}
  return agent_calls.get(
    f"{made['url']}{path}", headers=bearer | headers
  ).status_code


def test_a_session_is_named_by_key_path_or_header(url, pool):
  made = agent_calls.make(url)
  token = made["api_key"].rpartition(".")[2]
  body = {"model": "m", "messages": [agent_calls.user("go")], "max_tokens": 1}
  for n, (base, key, headers) in enumerate([
    ("", made["api_key"], {}),
    (f"/sessions/{made['id']}", token, {}),
    ("", token, {"X-Session-ID": made["id"]}),
    ("", made["api_key"], {"X-Session-ID": made["id"]}),
  ]):  # fmt: skip
    for header in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
      found = agent_calls.send(
        f"{url}{base}/v1/chat/completions", json=body | {"seed": n},
        headers=header | headers,
      )  # fmt: skip
      assert found.status_code == 200, found.text
  ids = {"token_ids": [1, 2], "sampling_params": {"max_tokens": 2, "seed": 1}}
  bearer = {"Authorization": f"Bearer {made['api_key']}"}
  first = agent_calls.send(
    f"{url}/inference/v1/generate", json=ids, headers=bearer
  )
  told = first.json()["choices"][0]["token_ids"]
  more = ids | {"token_ids": [1, 2, *told, 3]}
  agent_calls.send(
    f"{url}/inference/v1/generate", json=more, headers=bearer
  ).raise_for_status()
  assert (
    agent_calls.post(made, "finish", status="terminated").json()["steps"] == 6
  )
  prompts = [
    step.prompt_ids.tolist() for step in agent_calls.recorded(made, pool).steps
  ]
  assert prompts[-2:] == [[1, 2], [1, 2, *told, 3]]


def test_no_session_is_reached_with_the_key_of_another(policy, pool, caplog):
  with served_policies.served(policy, pool, api_key="server") as url:
    found = agent_calls.send(f"{url}/sessions", json={"task": {"uid": "t"}})
    assert found.status_code == 401
    bearer = {"Authorization": "Bearer server"}
    mine, other = (
      agent_calls.send(
        f"{url}/sessions", json={"task": {"uid": "t"}}, headers=bearer
      ).json()
      for _ in range(2)
    )
    assert status(mine) == 200
    token = other["api_key"].rpartition(".")[2]
    forged = f"{mine['id']}.{token}"
    for key in (other["api_key"], token, forged, "server", ".", "x" * 9999,
                mine["id"], f"{mine['id']}.", "é"):  # fmt: skip
      header = {"Authorization": f"Bearer {key}".encode()}
      for call in (
        lambda h: agent_calls.get(mine["url"], headers=h),
        lambda h: agent_calls.get(f"{mine['base_url']}/models", headers=h),
        *(
          functools.partial(
            lambda what, h: agent_calls.send(
              f"{mine['url']}/{what}", json={"reward": 1.0}, headers=h
            ),
            what,
          )
          for what in ("rewards", "labels", "finish", "v1/chat/completions")
        ),
        lambda h: agent_calls.send(
          f"{url}/v1/chat/completions", json={},
          headers=h | {"X-Session-ID": mine["id"]},
        ),
      ):  # fmt: skip
        assert call(header).status_code == 401
    # A session's key makes no sessions.
    own = {"Authorization": f"Bearer {mine['api_key']}"}
    again = agent_calls.send(f"{url}/sessions", json={}, headers=own)
    assert again.status_code == 401
    assert token not in mine["url"] + other["url"] + caplog.text
  assert pathlib.Path(f"{pool}.secret").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("by_header", [False, True])
def test_a_name_of_a_client_does_not_hide_the_session_of_its_key(
  policy, pool, by_header
):
  """Harnesses send names of their own, and the key that a run gave them."""
  more = {"limits": dataclasses.replace(LIMITS, by_header=by_header)}
  with served_policies.served(policy, pool, api_key="server", **more) as url:
    bearer = {"Authorization": "Bearer server"}
    mine, other = (
      agent_calls.send(
        f"{url}/sessions", json={"task": {"uid": "t"}}, headers=bearer
      ).json()
      for _ in range(2)
    )
    body = {"model": "m", "messages": [agent_calls.user("go")], "max_tokens": 1}
    for n, (key, name, code) in enumerate([
      (mine["api_key"], "trial-7", 200),
      (mine["api_key"], "", 200),
      (mine["api_key"], other["id"], 401),
      (mine["api_key"].rpartition(".")[2], "trial-7", 401),
      (mine["api_key"] + "x", "trial-7", 401),
    ]):  # fmt: skip
      found = agent_calls.send(
        f"{url}/v1/chat/completions", json=body | {"seed": n},
        headers={"Authorization": f"Bearer {key}", "X-Session-ID": name},
      )  # fmt: skip
      assert found.status_code == code, found.text
    ended = agent_calls.post(mine, "finish", status="terminated")
    assert ended.json()["steps"] == 2


def test_rewards_and_ends_are_taken_once(url, pool):
  made = agent_calls.make(url, request_id="r", labels={"a": "1"})
  assert agent_calls.make(url, request_id="r", labels={"a": "1"}) == made
  assert agent_calls.send(
    f"{url}/sessions", json={"request_id": "r"}
  ).status_code == 409  # fmt: skip
  assert (
    agent_calls.post(made, "rewards", reward=1.0).status_code == 409
  )  # No step yet.
  with agent_calls.client_of(made) as client:
    agent_calls.ask(client, [agent_calls.user("go")])
    agent_calls.ask(client, [agent_calls.user("stay")])
  first = agent_calls.post(made, "rewards", step=0, reward=0.5, order=0)
  assert first.json() == agent_calls.post(
    made, "rewards", step=0, reward=0.5, order=0
  ).json()  # fmt: skip
  for body in ({"reward": 0.7, "order": 0}, {"reward": 0.7, "order": 2}):
    assert agent_calls.post(made, "rewards", **body).status_code == 409
  agent_calls.post(
    made, "rewards", step=0, reward=0.25, name="form"
  ).raise_for_status()
  agent_calls.post(
    made, "rewards", step=0, reward=0.125, name="form"
  ).raise_for_status()
  agent_calls.post(
    made, "labels", labels={"b": "2"}, notes="so so"
  ).raise_for_status()
  for body in ({"reward": "nan"}, {"reward": 1e39}, {"reward": 1, "step": 7},
               {"rewarded": 1}, {"reward": None}):  # fmt: skip
    assert agent_calls.post(made, "rewards", **body).status_code in (400, 409)
  end = {
    "status": "truncated",
    "reward": 2.0,
    "messages": [agent_calls.user("next")],
  }
  done = agent_calls.post(made, "finish", **end)
  assert done.json() == {
    "id": made["id"], "status": "truncated", "error": None, "steps": 2,
    "reward": 2.625, "success": True,
  }  # fmt: skip
  assert agent_calls.post(made, "finish", **end).json() == done.json()
  assert (
    agent_calls.post(made, "finish", status="terminated").status_code == 409
  )
  assert agent_calls.post(made, "rewards", reward=1.0).status_code == 410
  with (
    agent_calls.client_of(made) as client,
    pytest.raises(openai.APIStatusError) as said,
  ):
    agent_calls.ask(client, [agent_calls.user("more")])
  assert said.value.status_code == 410
  found = agent_calls.recorded(made, pool)
  assert [step.reward for step in found.steps] == [0.625, 2.0]
  assert found.steps[-1].truncated
  assert found.final_prompt_ids is not None
  with pool_lib.Pool(pool) as store:
    (entry,) = pool_entries.entries(store, label=("b", "2"))
  assert (entry.state, entry.notes) == ("ready", "so so")
  assert entry.labels == {"a": "1", "b": "2"}


def test_an_end_is_acknowledged_again_by_a_gateway_that_was_started_anew(
  policy, pool
):
  with served_policies.served(policy, pool, limits=LIMITS) as url:
    made, lost = agent_calls.make(url), agent_calls.make(url)
    with agent_calls.client_of(made) as client:
      agent_calls.ask(client, [agent_calls.user("go")])
    done = agent_calls.post(
      made, "finish", status="terminated", reward=1.0
    ).json()
  with served_policies.served(policy, pool, limits=LIMITS) as url:
    here = lambda one: one | {"url": f"{url}/sessions/{one['id']}"}
    again = agent_calls.post(
      here(made), "finish", status="terminated", reward=1.0
    )
    assert again.json() == done
    for one, what in ((made, {"status": "error"}), (lost, {"status": "ended"})):
      assert agent_calls.post(here(one), "finish", **what).status_code == 410
    assert (
      agent_calls.post(here(lost), "rewards", reward=1.0).status_code == 410
    )


def test_who_played_before_a_restart_has_no_part_in_what_is_played_after(
  policy, pool
):
  """The gateway gives out again what was under way when it was killed."""
  end = {"status": "terminated", "reward": 5.0}
  with pool_lib.Pool(pool) as store:
    task = types.Task("t", "test", "test", {})
    store.issue("g", task, [("e0", (0, 0), 0)])
    with served_policies.served(policy, store, limits=LIMITS) as url:
      old = agent_calls.make(url, task=None)
      with agent_calls.client_of(old) as client:
        agent_calls.ask(client, [agent_calls.user("old")])
  with pool_lib.Pool(pool) as store:
    store.reclaim()
    with served_policies.served(policy, store, limits=LIMITS) as url:
      old |= {"url": f"{url}/sessions/e0", "base_url": f"{url}/sessions/e0/v1"}
      assert agent_calls.post(old, "finish", **end).status_code == 410
      new = agent_calls.make(url, task=None)
      assert (new["id"], new["attempt"]) == ("e0", 2)
      with agent_calls.client_of(new) as client:
        agent_calls.ask(client, [agent_calls.user("new")])
      for what, body in (
        ("finish", end), ("rewards", {"reward": 1.0}), ("labels", {}),
        ("v1/chat/completions",
         {"model": "m", "messages": [agent_calls.user("old")]}),
      ):  # fmt: skip
        said = agent_calls.post(old, what, **body)
        assert said.status_code == 410
        assert "task given to another" in said.json()["error"]["message"]
      assert status(old) == 410
      done = agent_calls.post(new, "finish", **end | {"reward": 1.0})
      assert (done.json()["steps"], done.json()["reward"]) == (1, 1.0)
  # Nor is the end of the second acknowledged to the first.
  with served_policies.served(policy, pool, limits=LIMITS) as url:
    here = {"url": f"{url}/sessions/e0"}
    end |= {"reward": 1.0}
    assert agent_calls.post(new | here, "finish", **end).json() == done.json()
    assert agent_calls.post(old | here, "finish", **end).status_code == 410


def test_an_end_that_comes_too_late_is_refused_the_same_way_each_time(
  policy, pool
):
  with (
    pool_lib.Pool(pool) as store,
    served_policies.served(policy, store, limits=LIMITS) as url,
  ):
    made = agent_calls.make(url)
    store.reclaim()
    store.start("another", 60.0, uid=made["id"])
    for reward in (1.0, 1.0, 2.0):
      said = agent_calls.post(made, "finish", status="ended", reward=reward)
      assert said.status_code == 410
      assert "not played by gateway-" in said.json()["error"]["message"]


def test_a_secret_that_is_not_whole_is_refused(pool):
  made = pool_file.secret(pool)
  assert pool_file.secret(pool) == made
  file = pathlib.Path(f"{pool}.secret")
  assert [p.name for p in pool.parent.glob("*.secret*")] == [file.name]
  for torn in (b"", made[:9]):
    file.write_bytes(torn)
    with pytest.raises(RuntimeError, match=r"secret .* bytes and not 32"):
      pool_file.secret(pool)


@pytest.mark.slow
def test_sessions_are_bounded_and_end_when_nobody_uses_them(policy, pool):
  limits = session_lib.Limits(live=2, idle_s=3.0, writes=1)
  with served_policies.served(policy, pool, limits=limits) as url:
    made, _ = agent_calls.make(url), agent_calls.make(url)
    full = agent_calls.send(f"{url}/sessions", json={"task": {"uid": "t"}})
    assert full.status_code == 429
    assert full.headers["retry-after"] == "1"
    assert agent_calls.send(f"{url}/sessions", json={}).status_code in (
      429,
      503,
    )
    deadline = time.monotonic() + 20
    while status(made) == 200 and time.monotonic() < deadline:
      if agent_calls.get(made["url"], headers={
        "Authorization": f"Bearer {made['api_key']}"
      }).json()["state"] == "finished":  # fmt: skip
        break
      time.sleep(0.1)
    assert agent_calls.send(f"{url}/sessions", json={}).json()["error"][
      "code"
    ] == "no_task"  # fmt: skip
    made = agent_calls.make(url)
    agent_calls.post(made, "labels", labels={"a": "b"}).raise_for_status()
    assert (
      agent_calls.post(made, "labels", labels={"a": "c"}).status_code == 400
    )
  with pool_lib.Pool(pool) as store:
    assert pool_entries.counts(store)["failed/SessionExpired"] == 2


def test_a_full_pool_says_how_it_is_emptied(policy, pool, tmp_path):
  """What has ended makes room once it is exported."""
  with (
    pool_lib.Pool(pool, capacity=1) as store,
    served_policies.served(policy, store) as url,
  ):
    begin = lambda: agent_calls.send(
      f"{url}/sessions", json={"task": {"uid": "t"}}
    )
    made, full = begin().json(), begin()
    assert full.status_code == 429
    said = full.json()["error"]["message"]
    assert "export --consume" in said
    assert "--pool-capacity" in said
    with agent_calls.client_of(made) as client:
      agent_calls.ask(client, [agent_calls.user("go")])
    agent_calls.post(made, "finish", status="ended").raise_for_status()
    assert begin().status_code == 429
    export = ["export", "--consume", "--jsonl", str(tmp_path / "out.jsonl")]
    assert cli.main(["pool", str(pool), *export]) == 0
    assert begin().status_code == 200


FIELDS = ["reward", "step", "order", "name", "status", "labels", "messages",
          "task", "group_size", "key", "token_ids", "prompt", "tools",
          "model", "stream", "max_tokens", "stop", "anchor"]  # fmt: skip
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
  | st.sampled_from(["error", "terminated", "user", "assistant"]),
  lambda inner: st.lists(inner, max_size=3)
  | st.dictionaries(
    st.sampled_from([*FIELDS, "role", "content", "uid", "tool_calls",
                     "function", "arguments", "type"]), inner, max_size=3
  ),
  max_leaves=6,
)  # fmt: skip


def test_no_body_makes_the_gateway_fail(policy, pool):
  with (
    served_policies.served(policy, pool, limits=LIMITS) as url,
    httpx.Client(verify=False, timeout=60) as client,
  ):
    made = agent_calls.make(url)
    bearer = {"Authorization": f"Bearer {made['api_key']}"}

    @hypothesis.given(
      what=st.sampled_from(
        ["rewards", "labels", "finish", "v1/chat/completions",
         "v1/completions", "inference/v1/generate"]
      ),
      body=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
      raw=st.none() | st.binary(max_size=20),
      own=st.booleans(),
    )  # fmt: skip
    @hypothesis.settings(max_examples=25, deadline=None)
    def send(what, body, raw, own):
      text = json.dumps(body).encode() if raw is None else raw
      path, headers = (f"{made['url']}/{what}", bearer)
      if what == "labels" and own:
        path, headers = f"{url}/sessions", {}
      found = client.post(path, content=text, headers=headers)
      # 503: no task waits.
      assert found.status_code < 500 or found.status_code == 503, found.text

    send()


def test_a_full_disk_is_told_and_the_end_is_not_acknowledged(policy, pool):
  with (
    pool_lib.Pool(pool) as store,
    served_policies.served(policy, store, limits=LIMITS) as url,
  ):
    made = agent_calls.make(url)
    with agent_calls.client_of(made) as client:
      agent_calls.ask(client, [agent_calls.user("go")])
    large = {"status": "terminated", "notes": "x" * 16000}
    # SQLite says so itself when its file may not grow.
    with store.file.transaction() as run:
      (pages,) = run("PRAGMA page_count").fetchone()
      run(f"PRAGMA max_page_count={pages}")
    full = agent_calls.post(made, "finish", **large)
    assert full.status_code == 503
    assert "disk is full" in full.json()["error"]["message"]
    with store.file.transaction() as run:
      run("PRAGMA max_page_count=1073741823")
    assert agent_calls.post(made, "finish", **large).status_code == 200
  assert agent_calls.recorded(made, pool).error is None
