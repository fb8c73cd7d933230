"""Agents of other packages, trained; run by `make test-standards`."""

import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import subprocess

import agent_runs
import numpy as np
import pytest
import small_runs

from steppo_jax import types
from steppo_jax.processes import hosts
from steppo_jax.rollout import loop, pool_entries
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import metrics
from steppo_jax.tokenizer import loading
from steppo_jax.training import agents, config

pytestmark = pytest.mark.standards

STANDARDS = pathlib.Path(os.environ.get("STEPPO_STANDARDS", ""))
HERE = pathlib.Path(__file__).parent
TASKSETS, SERVICE = HERE / "tasksets", HERE / "verifiers_service.py"
HOST = "127.0.0.1"
CALL = (
  '<tool_call>\n{"name": "look", "arguments": {"place": "door"}}\n</tool_call>'
)
FOUND = "At door stands a {} box."


def program(name, package, folder):
  """The command of a program of the page on agents."""
  text = (agent_runs.ROOT / "docs" / "agents.md").read_text()
  (code,) = re.findall(rf'```python\n("""{name}.*?)```', text, flags=re.S)
  (folder / name).write_text(code)
  python = STANDARDS / package / "bin" / "python"
  return f"{python} {folder / name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = agent_runs.model(tmp_path_factory.mktemp("released") / "model")
  agent_runs.as_transformers_reads(made)
  return made


@pytest.fixture(autouse=True)
def _environment(monkeypatch, folder, tmp_path):
  """What programs find: tasksets, the model, and no home of the user."""
  for name in ("STEPPO_API_KEY", "PYTHONPATH"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("PYTHONPATH", str(TASKSETS))
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("MODEL", str(folder))
  monkeypatch.setenv("TASKSET", "vf_words")
  # The program uv, with which verifiers sets its harness up.
  programs = STANDARDS / "verifiers-0.4.0" / "bin"
  monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


class Scripted:
  """An engine that gives one answer after the other to each conversation.

  Args:
    tokenizer: Spells the answers.
    answer: Makes the text of an answer from that of the prompt.
  """

  num_slots = 2
  compiles = 0
  version = 0
  counters = types.EngineCounters()

  def __init__(self, tokenizer, answer):
    self._tokenizer, self._answer = tokenizer, answer
    self._asked = []

  def submit(self, requests):
    self._asked += requests

  def poll(self):
    asked, self._asked = self._asked, []
    return [(one, self._respond(one)) for one in asked]

  def _respond(self, request):
    text = self._answer(self._tokenizer.decode(request.prompt_ids))
    ids = [*self._tokenizer.encode(text), self._tokenizer.end_of_turn_id]
    logp = np.full(len(ids), -1.0, np.float32)
    return types.Response(np.asarray(ids, np.int32), logp, "stop", 0)

  def so_far(self):
    return {}

  def cut(self, session):
    pass

  def release(self, session):
    pass


def options(folder, tmp_path, **how):
  """Updates on two episodes each; programs may take long to be loaded."""
  made = agent_runs.options(folder, tmp_path, **how)
  agents_made = dataclasses.replace(made.agents, seconds=900.0)
  return dataclasses.replace(made, agents=agents_made)


def played_by(answer, made, folder):
  """Two episodes of a run's agents, answered from a script."""
  tokenizer = loading.load(folder)
  task = types.Task("t", "household", "t", {"seed": 1})
  episodes = [loop.Episode(f"0-{n}-0", task, n, (0, 0, n, 0)) for n in range(2)]
  with agents.AgentPlayers(
    made, Scripted(tokenizer, answer), tokenizer, pool=None,
    hosts=hosts.ALONE, waiting=contextlib.nullcontext,
  ) as players:  # fmt: skip
    return players.play(episodes), tokenizer


def test_openai_agents_call_their_tools(folder, tmp_path):
  command = program("words_agent.py", "openai-agents-0.24.0", tmp_path)
  made = options(folder, tmp_path, command=command)

  def answer(prompt):
    found = re.search(r"stands a (\w+) box", prompt)
    return found[1] if found else CALL

  done, tokenizer = played_by(answer, made, folder)
  for one, colour in zip(done, ("red", "green"), strict=True):
    assert one.error is None
    assert [step.reward for step in one.steps] == [0.0, 1.0]
    assert one.success
    first, last = one.steps
    assert tokenizer.decode(first.response_ids).startswith("<tool_call>")
    assert FOUND.format(colour) in tokenizer.decode(last.prompt_ids)
    # What was sampled is not encoded again.
    before = [*first.prompt_ids, *first.response_ids]
    assert last.prompt_ids[: len(before)].tolist() == before


def trained(made):
  """Two updates; the steps that they learned from."""
  found = small_runs.run(made)
  with pool_lib.Pool(found / run_folder.POOL_NAME) as pool:
    entries = pool_entries.entries(pool)
    train = [e for e in entries if e.channel == "train"]
    records = pool_entries.trajectories(pool, [e.uid for e in train])
  assert {e.state for e in train} == {"consumed"}
  assert [e.version for e in train] == [0, 0, 1, 1]
  lines = metrics.read_jsonl(found)
  assert [line["update"] for line in lines] == [0, 1, 2]
  for line in lines[1:]:
    assert line["rollout/error_share"] == 0
    assert line["policy/sampler_gap"] < 1e-4
  return records


def test_openai_agents_are_trained_for_two_updates(folder, tmp_path):
  command = program("words_agent.py", "openai-agents-0.24.0", tmp_path)
  records = trained(options(folder, tmp_path, command=command))
  assert all(len(one.steps) >= 1 for one in records)


def test_a_task_of_verifiers_is_played_token_by_token(folder, tmp_path):
  command = program("verifiers_agent.py", "verifiers-0.4.0", tmp_path)
  made = options(folder, tmp_path, command=command)
  # Task 1 of the taskset.
  done, tokenizer = played_by(lambda prompt: "green", made, folder)
  for one in done:
    assert one.error is None
    (step,) = one.steps
    assert "Say green, number 1." in tokenizer.decode(step.prompt_ids)
    assert step.response_ids[-1] == tokenizer.end_of_turn_id
    assert step.reward == 2.0
    assert one.success


def test_verifiers_is_trained_for_two_updates(folder, tmp_path):
  command = program("verifiers_agent.py", "verifiers-0.4.0", tmp_path)
  # Tasks that are numbers, as the program reads them.
  tasks = config.EnvConfig("verifiers", options=("taskset=vf_words",))
  made = options(folder, tmp_path, command=command)
  trained(dataclasses.replace(made, env=tasks))


def test_rollouts_of_verifiers_that_come_by_themselves_are_trained(
  folder, tmp_path
):
  with socket.socket() as free:
    free.bind((HOST, 0))
    port = free.getsockname()[1]
  python = STANDARDS / "verifiers-0.4.0" / "bin" / "python"
  service = subprocess.Popen(
    [str(python), str(SERVICE), f"http://{HOST}:{port}"], env=os.environ
  )
  try:
    records = trained(
      options(
        folder, tmp_path, source="service", begin_by_header=True, port=port
      )
    )
  finally:
    service.kill()
    service.wait()
  assert all(one.error is None for one in records)
