"""A run whose episodes another process plays is the run that plays them."""

import dataclasses
import importlib.util
import logging
import os
import socket
import subprocess
import sys

import pytest
import small_runs

from steppo_jax.rollout.options import AgentConfig
from steppo_jax.serving import background
from steppo_jax.storage import metrics
from steppo_jax.training import config

ROOT = small_runs.WARM.parents[2]
PROGRAM = ROOT / "experiments" / "agents" / "household.py"
# What is played and learned, but not how long that takes.
_LEARNED = ("rollout/", "policy/", "critic/", "eval/")


def test_the_agents_know_their_run():
  """Where it listens, and what it takes for a refused command."""
  run = config.load(str(ROOT / "experiments" / "household_service.py"))
  spec = importlib.util.spec_from_file_location("household_agents", PROGRAM)
  agents = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(agents)
  assert (run.agents.host, run.agents.port) == (agents.HOST, agents.PORT)
  assert run.env.invalid_penalty == agents.PENALTY
  assert run.tokenizer == agents.TOKENIZER
  assert run.prompt.layout == "compact"


@pytest.mark.slow
def test_agents_over_http_learn_what_the_loop_learns(
  tmp_path, caplog, monkeypatch
):
  """Sampled tokens are the same; log-probs differ in their last bits."""
  served_as = background.config

  def impatient(app):
    """Connections that are not used are closed at once, not in seconds."""
    made = served_as(app)
    made.timeout_keep_alive = 0.02
    return made

  monkeypatch.setattr(background, "config", impatient)
  made = small_runs.small_config(
    tmp_path, env=config.EnvConfig(size="tiny", invalid_penalty=0.1)
  )
  wanted = metrics.read_jsonl(small_runs.run(made))
  with socket.create_server(("127.0.0.1", 0)) as listening:
    address = background.url_of(listening)
  port = int(address.rpartition(":")[2])
  served = dataclasses.replace(
    made,
    run_dir=str(tmp_path / "served"),
    rollout=dataclasses.replace(made.rollout, source="service"),
    agents=AgentConfig(port=port),
  )
  agents = subprocess.Popen(
    [sys.executable, str(PROGRAM), address, "--sessions=3"],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  try:
    with caplog.at_level(logging.WARNING):
      found = metrics.read_jsonl(small_runs.run(served))
    # The gateway is gone, and with it the agents.
    assert agents.wait(60) == 0
  finally:
    agents.kill()
    agents.wait()
  assert "has no chat template" in caplog.text
  assert len(found) == len(wanted) == 4
  for mine, want in zip(found, wanted, strict=True):
    assert mine.keys() == want.keys()
    for name, value in want.items():
      if name.startswith(_LEARNED) and not name.endswith(("_s", "seconds")):
        if isinstance(value, str):  # A digest of the panel.
          assert mine[name] == value, name
          continue
        near = pytest.approx(value, rel=1e-3, abs=1e-6, nan_ok=True)
        assert mine[name] == near, name
  assert any(line.get("rollout/reward") for line in wanted)
