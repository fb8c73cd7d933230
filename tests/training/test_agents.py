"""Runs whose episodes are played by programs that only know an endpoint."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading

import agent_calls
import agent_runs
import jax
import pytest
import small_runs

from steppo_jax.models import transformer
from steppo_jax.rollout import codec, loop, pool_entries
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.tokenizer import loading
from steppo_jax.training import players


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return agent_runs.model(tmp_path_factory.mktemp("released") / "model")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
  """The programs of the page on agents, by name."""
  made = tmp_path_factory.mktemp("programs")
  names = agent_runs.programs(made)
  assert names == ["my_agent.py", "my_service.py"]
  return made


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  """What programs import is this checkout."""
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)


def played(run_dir):
  with pool_lib.Pool(run_dir / run_folder.POOL_NAME) as pool:
    entries = pool_entries.entries(pool)
    return entries, pool_entries.trajectories(pool, [e.uid for e in entries])


@pytest.mark.slow
def test_the_program_of_the_page_is_trained(folder, programs, tmp_path):
  command = f"{sys.executable} {programs / 'my_agent.py'}"
  made = agent_runs.options(folder, tmp_path, command=command)
  found = small_runs.run(made)
  entries, records = played(found)
  assert {e.state for e in entries} == {"consumed"}
  train = [e for e in entries if e.channel == "train"]
  assert [e.uid for e in train] == ["0-0-0", "0-1-0", "1-0-0", "1-1-0"]
  # Updates behind the weights that sampled them.
  assert [e.version for e in train] == [0, 0, 1, 1]
  assert all(e.steps == 3 for e in train)
  assert all(r.steps[-1].truncated for r in records)
  assert sum(step.reward for r in records for step in r.steps) != 0
  lines = metrics.read_jsonl(found)
  for line in lines[1:]:
    assert line["rollout/error_share"] == 0
    # The weights that sampled are those that the update began with.
    assert line["policy/sampler_gap"] < 1e-4


@contextlib.contextmanager
def made_players(folder, tmp_path, **how):
  made = agent_runs.options(folder, tmp_path, **how)
  tokenizer = loading.load(folder)
  model = dataclasses.replace(agent_runs.MODEL, num_ids=tokenizer.num_ids)
  with players.make(made, model, tokenizer) as found:
    params = transformer.init(agent_runs.MODEL, jax.random.key(0))
    found.engine.set_params(params, 0)
    yield found, made


def episodes(made, count=2):
  tasks = players.make_tasks(made.env).sample(count, seed=0, update=0)
  return [
    loop.Episode(f"0-{n}-0", task, 0, (0, 0, n, 0))
    for n, task in enumerate(tasks)
  ]


def test_the_program_of_the_page_plays_what_it_was_issued(
  folder, programs, tmp_path
):
  command = f"{sys.executable} {programs / 'my_agent.py'}"
  with made_players(folder, tmp_path, command=command) as (found, made):
    done = found.play(episodes(made))
    assert found._pool.owners() == ["update-0"]
    # A run that is started anew within the update has the same episodes.
    assert [*map(codec.encode, found.play(episodes(made)))] == [
      *map(codec.encode, done)
    ]
    found.settle(0)
    assert found._pool.owners() == ["update-0"]
    found.settle(1)
    assert found._pool.owners() == []
  assert [t.uid for t in done] == ["0-0-0", "0-1-0"]
  for one in done:
    assert one.error is None
    assert [step.reward for step in one.steps] == pytest.approx([-0.1] * 3)
    assert one.steps[-1].truncated
    # The prompt of the call that was refused.
    last = one.steps[-1]
    before = [*last.prompt_ids, *last.response_ids]
    assert one.final_prompt_ids[: len(before)].tolist() == before
    assert len(one.final_prompt_ids) > len(before) + 8


@pytest.mark.slow
def test_agents_that_come_by_themselves_are_played_with(
  folder, programs, tmp_path
):
  with made_players(folder, tmp_path, source="service") as (found, made):
    service = subprocess.Popen(
      [sys.executable, str(programs / "my_service.py")],
      env=os.environ | {"GATEWAY": found.url}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
      done = found.play(episodes(made))
      again = found.play(episodes(made), temperature=0.0)
    finally:
      service.kill()
      service.wait()
  for one in (*done, *again):
    assert one.error is None
    assert [step.trajectory_uid for step in one.steps] == [one.uid] * 3
    assert one.final_prompt_ids is not None
  assert [t.uid for t in done] == ["0-0-0", "0-1-0"] == [t.uid for t in again]


def test_a_run_trains_on_its_own_tasks_alone(folder, tmp_path):
  """A session with another one would be acknowledged, and lost."""
  with made_players(folder, tmp_path, source="service") as (found, _):
    for mine in ({"task": {"uid": "mine"}}, {"group": "mine"}):
      said = agent_calls.send(f"{found.url}/sessions", json=mine)
      assert said.status_code == 400
      assert "its own tasks alone" in said.json()["error"]["message"]
    said = agent_calls.send(f"{found.url}/sessions", json={})
    assert said.json()["error"]["code"] == "no_task"


ENTRIES = """
import json
import os
import urllib.request


def call(path, **body):
  request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + path, json.dumps(body).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]})
  urllib.request.urlopen(request).read()


def play(task, seed):
  assert task.env == "household"
  said = [{"role": "user", "content": task.uid}]
  call("/chat/completions", model="any", messages=said)
  if seed == 0:
    return 0.25
  if seed == 1:
    print(json.dumps({"step": 0, "reward": 0.5}), flush=True)
    return {"status": "truncated", "success": True}
  if seed == 2:
    raise LookupError("no luck")


class Agents:
  async def play(task, seed):
    return play(task, seed)
"""


@pytest.mark.slow
def test_a_callable_plays_as_a_program_does(folder, tmp_path, monkeypatch):
  (tmp_path / "my_entries.py").write_text(ENTRIES)
  paths = f"{agent_runs.ROOT}{os.pathsep}{tmp_path}"
  monkeypatch.setenv("PYTHONPATH", paths)
  entry = "my_entries:Agents.play"
  with made_players(folder, tmp_path, entry=entry) as (found, made):
    (one,) = episodes(made, 1)
    every = [one._replace(uid=f"0-0-{n}", seed=n) for n in range(4)]
    done = found.play(every)
  assert [t.error and t.error.partition(":")[0] for t in done] == [
    None, None, "AgentExit", None,
  ]  # fmt: skip
  assert "LookupError: no luck" in done[2].error
  whole = [done[0], done[1], done[3]]
  assert [[s.reward for s in t.steps] for t in whole] == [[0.25], [0.5], [0.0]]
  assert [t.steps[-1].terminated for t in whole] == [True, False, True]
  assert done[1].success


FAILURES = {
  "AgentExit": "import sys; print('x'); sys.exit('no luck')",
  "AgentKilled": "import os; os.kill(os.getpid(), 9)",
  "AgentTimeout": "import time; time.sleep(60)",
  "AgentOutput": "print('{\"reward\": 1.0}')",
  "NoSteps": "pass",
  "MyOwn": 'print(\'{"status": "error", "cause": "MyOwn"}\')',
}


@pytest.mark.slow
def test_failures_are_counted_by_cause(folder, tmp_path):
  code = (
    "import json, os\n"
    f"failures = {list(FAILURES.values())!r}\n"
    "exec(failures[int(os.environ['STEPPO_SEED'])])\n"
  )
  (tmp_path / "agent.py").write_text(code)
  command = f"{sys.executable} {tmp_path / 'agent.py'}"
  how = {"command": command, "memory_mb": 4096}
  with made_players(folder, tmp_path, **how) as (found, made):
    found._agents._config = dataclasses.replace(made.agents, seconds=4.0)
    (one,) = episodes(made, 1)
    every = [one._replace(uid=f"0-0-{n}", seed=n) for n in range(len(FAILURES))]
    done = found.play(every)
  assert [t.error.partition(":")[0] for t in done] == list(FAILURES)
  assert "no luck" in done[0].error
  assert all(not thread.name.startswith("server") for thread in
             threading.enumerate())  # fmt: skip


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ({}, "rollout.source=agents needs agents.command"),
    ({"command": "'"}, "agents.command="),
    ({"command": "x", "entry": "a:b"}, "and not both"),
    ({"command": "x", "engine": "http"}, "leave rollout.engine=http out"),
    ({"entry": "a.b"}, "agents.entry='a.b' must be package.module:function"),
    ({"command": "x", "begin_by_header": True}, "set rollout.source=service"),
    ({"command": "x", "host": "0.0.0.0"}, "set STEPPO_API_KEY"),
    ({"command": "x", "port": 99999}, "agents.port=99999"),
  ],
)
def test_options_that_do_not_fit_are_told(folder, tmp_path, how, message):
  with (
    pytest.raises(ValueError, match=message),
    made_players(folder, tmp_path, **how),
  ):
    pass
