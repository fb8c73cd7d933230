"""How an agent's end, and what it prints, makes the end of its episode."""

import dataclasses
import pathlib
import sys

import agent_runs
import agents_ahead
import plain_agent
import pytest

from steppo_jax.rollout import loop

# What the agent of an episode does is the case of the number of its seed. The
# run admits four steps.
AGENT = """
import json, os, sys, time

sys.path.insert(0, {support!r})
import plain_agent


def ask(times):
  url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
  for n in range(times):
    said = [{{"role": "user", "content": str(n)}}]
    plain_agent.post(url, {{"model": "any", "messages": said}})


def refused():
  try:
    ask(5)
  except RuntimeError as error:
    assert "max_steps_exceeded" in str(error)


def written(**line):
  print(json.dumps(line), flush=True)


exec({cases!r}[int(os.environ["STEPPO_SEED"])])
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)


def played(tmp_path, cases, seconds):
  """One episode for each case, by agents that do it."""
  support = str(pathlib.Path(plain_agent.__file__).parent)
  path = tmp_path / "agent.py"
  path.write_text(AGENT.format(support=support, cases=list(cases)))
  with agents_ahead.playing(
    tmp_path, plays=f"{sys.executable} -S {path}"
  ) as (_, players, engine):  # fmt: skip
    engine.set_params(0, 0)
    config = players._agents._config
    players._agents._config = dataclasses.replace(config, seconds=seconds)
    (one, *_) = agents_ahead.episodes(0)
    return players.play(
      loop.Episode(f"0-{n}-0", one.task, n, (0, 0, n))
      for n in range(len(cases))
    )


ENDS = {
  # Clients that catch no error die of the call that is refused.
  "ask(5)": "truncated",
  "refused()": "truncated",
  "refused(); written(status='terminated')": "terminated",
  "ask(4)": "terminated",
  # Whatever else happens after it is no end of the limit's making.
  "refused(); os.kill(os.getpid(), 9)": "AgentKilled",
  "refused(); written(reward=1.0); time.sleep(60)": "AgentOutput",
  "refused(); written(status='error', cause='MyOwn')": "MyOwn",
  "refused(); written(status='error', cause='AgentExit')": "AgentExit",
  "ask(4); raise SystemExit(1)": "AgentExit",
}
LATE = {"refused(); time.sleep(60)": "AgentTimeout", "ask(5)": "truncated"}


@pytest.mark.parametrize(
  ("ends", "seconds"),
  [(ENDS, 20.0), pytest.param(LATE, 3.0, marks=pytest.mark.slow)],
)
def test_a_failure_after_a_limit_is_a_failure(tmp_path, ends, seconds):
  done = played(tmp_path, ends, seconds)
  found = [
    one.error.partition(":")[0]
    if one.error
    else "truncated" if one.steps[-1].truncated else "terminated"
    for one in done
  ]  # fmt: skip
  assert found == list(ends.values())
  assert all(len(one.steps) == 4 for one in done)
  for one, end in zip(done, found, strict=True):
    assert (one.final_prompt_ids is not None) == (end == "truncated")
    assert one.steps[-1].terminated == (end == "terminated")


LINES = (
  "{'reward': 1e999, 'step': 0}",
  "{'reward': 10 ** 4000, 'step': 0}",
  "{'reward': 1, 'step': 10 ** 30}",
  "{'reward': 1, 'step': 0, 'name': '\\ud800'}",
  "{'reward': 1, 'step': 0, 'anchor': nested(900)}",
  "{'reward': nested(900), 'step': 0}",
  "{'status': nested(900)}",
  "{'status': None}",
  "{'status': 'truncated', 'messages': [{'role': '\\ud800'}]}",
  "{'status': 'truncated', 'messages': [{'role': 'user', 'content': [[]]}]}",
  "{'status': 'ended', 'tools': [nested(900)]}",
  "{'status': 'ended', 'scores': {'x': 10 ** 4000}}",
  "{'status': 'ended', 'reward': 10 ** 4000}",
  "{'status': 'ended', 'labels': {'x' * 999: 'y'}}",
  "{'status': 'error', 'cause': 'a b'}",
)


def test_no_line_of_an_agent_ends_the_run(tmp_path):
  nested = "nested = lambda n: {'x': nested(n - 1)} if n else 1\n"
  cases = [f"{nested}ask(1)\nprint(json.dumps({line}))" for line in LINES]
  done = played(tmp_path, cases, 20.0)
  causes = [(one.error or "none").partition(":")[0] for one in done]
  assert dict(zip(LINES, causes, strict=True)) == dict.fromkeys(
    LINES, "AgentOutput"
  )
