"""Records of agents' episodes leave the pool when no restart needs them."""

import agent_runs
import agents_ahead
import pytest

from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries
from steppo_jax.storage import folder as run_folder


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(agent_runs.ROOT))
  monkeypatch.delenv("STEPPO_API_KEY", raising=False)


def kept(tmp_path):
  """Updates of the records that a pool still has, failed ones too."""
  with pool_lib.Pool(tmp_path / run_folder.POOL_NAME) as pool:
    entries = pool_entries.entries(pool)
    records = pool_entries.trajectories(pool, [e.uid for e in entries])
  assert len(entries) == 16 + 4
  return {one.uid.rpartition("-")[0].rpartition("-")[0] for one in records}


def play(players, engine, updates):
  for update in updates:
    engine.set_params(update, update)
    players.play(agents_ahead.episodes(update))


@pytest.mark.slow
def test_what_settled_before_a_restart_failed_or_was_evaluated_is_let_go_of(
  tmp_path,
):
  with agents_ahead.playing(tmp_path) as (_, players, engine):
    players._keep = 1
    play(players, engine, (0, 1))
    panel = [e._replace(uid=f"evaluation-{e.uid[2:]}") for e in
             agents_ahead.episodes(0)]  # fmt: skip
    players.play(panel, temperature=0.0)
    play(players, engine, (2,))
    players.settle(1)
  with agents_ahead.playing(tmp_path) as (_, players, engine):
    players._keep = 1
    play(players, engine, (3,))
    assert kept(tmp_path) == {"0", "1", "2", "3", "evaluation1-evaluation"}
    players.settle(2)
    assert kept(tmp_path) == {"1", "2", "3", "evaluation1-evaluation"}
    players.settle(3)
    assert kept(tmp_path) == {"2", "3"}
    players.settle()
    assert kept(tmp_path) == {"3"}
  # One in seven gives up: what is let go of is a failed episode's, too.
  assert len(agents_ahead.acknowledged(tmp_path)) < 16
