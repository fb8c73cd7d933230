"""The command `serve policy` in this process."""

import concurrent.futures

import agent_calls
import agent_runs

from steppo_jax import __main__ as cli
from steppo_jax.sampler import programs
from steppo_jax.serving import background


def test_a_server_that_listens_has_compiled_all(tmp_path, monkeypatch):
  """No request waits for the compiler."""
  folder = agent_runs.model(tmp_path / "model")
  shared, init = [], programs.Shared.__init__

  def made(self, *given):
    shared.append(self)
    init(self, *given)

  def run(self, sockets):
    before = shared[0].compiled
    assert before > 3
    server = background.Background(self.config.app, sockets[0])
    try:
      asked = [agent_calls.user("word " * n) for n in (1, 3, 20)]
      with concurrent.futures.ThreadPoolExecutor(3) as threads:
        answers = threads.map(
          lambda one: agent_calls.send(
            f"{server.url}/v1/chat/completions",
            json={"model": "model", "messages": [one], "max_tokens": 9},
          ),
          asked,
        )
        assert {one.status_code for one in answers} == {200}
      begin = lambda: agent_calls.send(
        f"{server.url}/sessions", json={"task": {"uid": "t"}}
      )
      assert [begin().status_code for _ in range(2)] == [200, 429]
    finally:
      server.close()
    assert shared[0].compiled == before

  monkeypatch.setattr(programs.Shared, "__init__", made)
  monkeypatch.setattr("uvicorn.Server.run", run)
  # Engines of one model and seed share their programs.
  flags = ["--context", "128", "--slots", "3", "--seed", "70"]
  flags += ["--pool", str(tmp_path / "pool"), "--pool-capacity", "1"]
  assert cli.main(["serve", "policy", "--weights", str(folder), *flags]) == 0


def test_the_capacity_of_a_pool_needs_a_pool(tmp_path, capsys):
  serve = ["serve", "policy", "--weights", str(tmp_path), "--pool-capacity"]
  for wrong in ("9", "0", "0 --pool p.sqlite"):
    assert cli.main([*serve, *wrong.split()]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "must be at least 1, and needs --pool" in said
