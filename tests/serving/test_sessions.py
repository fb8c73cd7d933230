"""Sessions over HTTP: what agents ask for becomes episodes."""

import concurrent.futures
import dataclasses
import functools
import gc
import os
import threading
import time
import weakref

import agent_calls
import httpx
import numpy as np
import openai
import pytest
import served_policies

from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.packing import rows
from steppo_jax.packing.options import PackingConfig
from steppo_jax.prompts import chat
from steppo_jax.rollout import journal, loop
from steppo_jax.rollout import options as rollout_options
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.serving import session as session_lib
from steppo_jax.serving import turns

LIMITS = session_lib.Limits(
  max_new_tokens=served_policies.NEW_TOKENS, temperature=1.0, turns=6
)
SYSTEM = "Answer with one command."


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  tokenizer = served_policies.tokenizer(tmp_path_factory.mktemp("t") / "nano")
  engine = served_policies.engine(tokenizer, num_slots=1)
  made = served_policies.policy(tokenizer, engine)
  yield made
  made.scheduler.close()


@pytest.fixture
def pool(tmp_path):
  return tmp_path / "pool.sqlite"


@pytest.fixture
def url(policy, pool):
  with served_policies.served(policy, pool, limits=LIMITS) as address:
    yield address


EPISODES = int(os.environ.get("STEPPO_EPISODES", "3"))
TASKS = [
  household_worlds.generate(n, split="train", size="tiny")
  for n in range(EPISODES)
]


def play(url, prompt, _):
  """An agent that knows nothing but its client, at the task that waits."""
  made = agent_calls.send(f"{url}/sessions", json={}).json()
  env = household.HouseholdEnv()
  task = next(t for t in TASKS if t.uid == made["task"]["uid"])
  out = env.reset(task, made["seed"])
  messages = [
    {"role": "system", "content": SYSTEM},
    agent_calls.user(out.observation),
  ]
  anchor, step = out.info.get("anchor", ""), 0
  with agent_calls.client_of(made) as client:
    while True:
      try:
        answer = agent_calls.ask(client, messages).choices[0].message
      except openai.BadRequestError:
        # Another call does not fit: the loop cuts the episode there too.
        end = {"status": "ended", "success": False}
        break
      out = env.step(prompt.action(prompt.tokenizer.encode(answer.content)))
      agent_calls.post(
        made, "rewards", step=step, reward=out.reward, anchor=anchor,
        invalid=bool(out.info.get("invalid", False)), order=step,
      ).raise_for_status()  # fmt: skip
      if out.terminated:
        end = {"status": "terminated", "success": out.info["won"]}
        break
      anchor, step = out.info.get("anchor", ""), step + 1
      messages += [
        {"role": "assistant", "content": answer.content},
        agent_calls.user(out.observation),
      ]
  assert agent_calls.post(made, "finish", **end).status_code == 200


@pytest.fixture(scope="module")
def played(policy):
  """The household as the internal loop plays it."""
  prompt = chat.ChatPrompt(chat.Chat(policy.tokenizer), SYSTEM)
  assert prompt.append_only
  limits = rollout_options.RolloutConfig(
    max_steps=LIMITS.turns,
    max_tokens=served_policies.CONTEXT,
    max_new_tokens=served_policies.NEW_TOKENS,
  )
  episodes = [
    loop.Episode(f"g{n}-0", task, 7, (0, 0, n, 0))
    for n, task in enumerate(TASKS)
  ]
  own = served_policies.engine(policy.tokenizer, num_slots=1)
  found = loop.run(own, household.HouseholdEnv, episodes, prompt, limits)
  assert {len(t.steps) for t in found} != {1}
  return prompt, found


@pytest.mark.parametrize(
  "at_once", [1, pytest.param(3, marks=pytest.mark.slow)]
)
def test_an_agents_episode_is_the_internal_loops(policy, played, pool, at_once):
  """To the last bit where both sample one at a time."""
  prompt, wanted = played
  if at_once > 1:
    policy = served_policies.policy(
      policy.tokenizer, served_policies.engine(policy.tokenizer)
    )
  with pool_lib.Pool(pool) as store:
    for n, task in enumerate(TASKS):
      store.issue(f"g{n}", task, [(f"g{n}-0", (0, 0, n, 0), 7)])
  with (
    served_policies.served(policy, pool, limits=LIMITS) as url,
    concurrent.futures.ThreadPoolExecutor(at_once) as threads,
  ):
    list(threads.map(functools.partial(play, url, prompt), TASKS))
  if at_once > 1:
    policy.scheduler.close()
  with pool_lib.Pool(pool) as store:
    found = store.lease("learner", 60, groups=EPISODES)
  assert [t.uid for t in found] == [t.uid for t in wanted]
  for mine, want in zip(found, wanted, strict=True):
    for a, b in zip(mine.steps, want.steps, strict=True):
      np.testing.assert_array_equal(a.prompt_ids, b.prompt_ids)
      np.testing.assert_array_equal(a.response_ids, b.response_ids)
      np.testing.assert_allclose(a.behaviour_logp, b.behaviour_logp, rtol=1e-4)
    # Sums differ in their last bits with the company in which they are made.
    exact = [
      dataclasses.replace(a, behaviour_logp=b.behaviour_logp)
      for a, b in zip(mine.steps, want.steps, strict=True)
    ]
    if at_once > 1:
      mine = dataclasses.replace(mine, steps=tuple(exact))
    assert journal.same(mine, want)


def tokens(answer):
  return answer.prompt_token_ids, answer.choices[0].token_ids


def test_a_sampled_token_is_never_encoded_again(policy, url, pool):
  """A text that reads as an answer does is that answer, however it is cut."""
  made = agent_calls.make(url, key=[3])
  with agent_calls.client_of(made) as client:
    first = agent_calls.ask(client, [agent_calls.user("go")])
    said = first.choices[0].message.content
    # Nothing that encodes the text gives these very tokens.
    again = [*said]
    spaced = f"  {' '.join(again)}\n"
    for text in (said, spaced, f"<think>hm</think>{said}"):
      messages = [
        agent_calls.user("go"), {"role": "assistant", "content": text},
        agent_calls.user("on"),
      ]  # fmt: skip
      prompt_ids, _ = tokens(agent_calls.ask(client, messages, seed=len(text)))
      before, answered = tokens(first)
      assert prompt_ids[: len(before) + len(answered)] == before + answered
    edited = [
      agent_calls.user("go"), {"role": "assistant", "content": "x" + said},
      agent_calls.user("on"),
    ]  # fmt: skip
    prompt_ids, _ = tokens(agent_calls.ask(client, edited))
    assert prompt_ids[: len(before) + len(answered)] != before + answered
  steps = agent_calls.get(
    made["url"], headers={"Authorization": f"Bearer {made['api_key']}"}
  ).json()["steps"]
  assert [step["after"] for step in steps] == [None, 0, 0, 0, None]


def test_a_repeated_request_gets_the_same_answer_and_is_one_step(url, pool):
  made = agent_calls.make(url)
  body = {
    "model": "m",
    "messages": [agent_calls.user("go")],
    "return_token_ids": True,
  }
  headers = {"Authorization": f"Bearer {made['api_key']}"}
  send = lambda **more: agent_calls.send(
    f"{made['base_url']}/chat/completions", json=body,
    headers=headers | more,
  )  # fmt: skip
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    found = [one.json() for one in threads.map(lambda _: send(), range(4))]
  found.append(send(**{"X-Stainless-Retry-Count": "1"}).json())
  for one in found:
    one.pop("created")
    assert one == found[0]
  # Where the client numbers its calls, the number decides.
  assert send(**{"X-Session-Order": "0"}).json()["id"] == found[0]["id"]
  assert send(**{"X-Session-Order": "1"}).json()["id"] != found[0]["id"]
  assert send(**{"X-Session-Order": "3"}).status_code == 409
  assert send(**{"X-Session-Order": "x"}).status_code == 400
  assert (
    agent_calls.post(made, "finish", status="terminated").json()["steps"] == 2
  )
  assert len(agent_calls.recorded(made, pool).steps) == 2


def test_a_stream_that_is_cut_is_answered_whole_when_it_is_asked_again(
  url, pool
):
  made = agent_calls.make(url)
  body = {"model": "m", "messages": [agent_calls.user("go")], "stream": True}
  headers = {"Authorization": f"Bearer {made['api_key']}"}
  path = f"{made['base_url']}/chat/completions"
  with httpx.stream("POST", path, json=body, headers=headers) as events:
    next(events.iter_lines())
  with agent_calls.client_of(made) as client:
    prompt_ids, ids = tokens(agent_calls.ask(client, [agent_calls.user("go")]))
    # Of a call that nobody got an answer to there is no step, unless all of the
    # answer was on its way before the client left.
    with httpx.stream(
      "POST",
      path,
      json=body | {"messages": [agent_calls.user("lost")]},
      headers=headers,
    ) as events:
      next(events.iter_lines())
  told = agent_calls.post(made, "finish", status="terminated").json()["steps"]
  step, *lost = agent_calls.recorded(made, pool).steps
  assert told == 1 + len(lost) <= 2
  assert step.response_ids.tolist() == ids
  assert step.prompt_ids.tolist() == prompt_ids


def test_branches_are_one_trajectory_that_is_packed_as_a_tree(
  policy, url, pool
):
  """Two sub-agents, and one whose history was cut: one row of the learner."""
  made = agent_calls.make(url)
  system = {"role": "system", "content": "You are one of several."}
  with agent_calls.client_of(made) as client:
    for name in ("left", "right"):
      messages = [system, agent_calls.user(name)]
      for turn in range(2):
        said = agent_calls.ask(client, messages).choices[0].message.content
        messages += [
          {"role": "assistant", "content": said},
          agent_calls.user(f"and {turn}"),
        ]
    agent_calls.ask(client, [system, *messages[-2:]])
  for step in range(5):
    agent_calls.post(made, "rewards", step=step, reward=float(step))
  agent_calls.post(made, "finish", status="terminated").raise_for_status()
  one = agent_calls.recorded(made, pool)
  assert [step.reward for step in one.steps] == [0, 1, 2, 3, 4]
  packed = {
    layout: rows.pack(
      [one], [0], PackingConfig(row_length=1024, layout=layout), num_parts=1,
      rows_multiple=1, pad_id=0,
    )
    for layout in ("rows", "packed", "tree")
  }  # fmt: skip
  sizes = [packed[x].unique_tokens for x in ("rows", "packed", "tree")]
  assert sizes == sorted(set(sizes), reverse=True)
  # Credit flows through all steps in the order in which the calls began.
  table = packed["tree"].table
  assert table.reward[1:6].tolist() == [0, 1, 2, 3, 4]
  assert table.last[1:6].tolist() == [False] * 4 + [True]
  step_of = packed["tree"].tokens.step_ids
  for number, step in enumerate(one.steps, 1):
    assert np.count_nonzero(step_of == number) == len(step.response_ids)


def told(made):
  bearer = {"Authorization": f"Bearer {made['api_key']}"}
  return agent_calls.get(made["url"], headers=bearer).json()


def test_a_session_that_has_ended_holds_nothing_that_was_sampled(url):
  made = agent_calls.make(url)
  with agent_calls.client_of(made) as client:
    agent_calls.ask(client, [agent_calls.user("go")], seed=4321)
  agent_calls.post(made, "rewards", reward=1.0, anchor="x").raise_for_status()
  held = [
    weakref.ref(one)
    for one in gc.get_objects()
    if type(one) is turns.Turn and one.settings.seed == 4321
  ]
  before = told(made)
  assert agent_calls.post(made, "finish", status="ended").status_code == 200
  gc.collect()
  assert [one() for one in held] == [None]
  assert told(made) == before | {"state": "finished"}


@pytest.mark.parametrize("bound", ["idle_s", "lasting_s"])
def test_a_session_with_an_answer_under_way_is_in_use(
  policy, pool, bound, monkeypatch
):
  """However long it takes; and the end of others does not wait for it."""
  engine = policy.scheduler._engine
  sampled, poll = threading.Event(), engine.poll
  monkeypatch.setattr(engine, "poll", lambda: sampled.wait(30) and poll())
  limits = session_lib.Limits(**{"idle_s": 0.8, bound: 0.4})
  with (
    served_policies.served(policy, pool, limits=limits) as url,
    concurrent.futures.ThreadPoolExecutor(1) as threads,
  ):
    busy = agent_calls.make(url)
    with agent_calls.client_of(busy) as client:
      answer = threads.submit(agent_calls.ask, client, [agent_calls.user("go")])
      idle = agent_calls.make(url)
      try:
        until = time.monotonic() + 1.2  # Longer than leases of the pool last.
        while told(idle)["state"] == "running":
          assert time.monotonic() < until + 10
          time.sleep(0.05)
        time.sleep(max(0, until - time.monotonic()))
        assert told(busy)["state"] == "running"
      finally:
        sampled.set()
      assert answer.result().choices[0].token_ids
    ended = agent_calls.post(busy, "finish", status="terminated")
    assert ended.status_code == (200 if bound == "idle_s" else 409), ended.text
