"""Runs whose environments live in worker processes, or fail."""

import dataclasses

import pytest
import small_runs
import worlds

from steppo_jax.envs.workers.options import WorkerLimits
from steppo_jax.storage import metrics
from steppo_jax.training import config

ROLLOUT = dataclasses.replace(worlds.ROLLOUT, max_steps=4)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  """A run with the environments in this process."""
  options = small_runs.small_config(tmp_path_factory.mktemp("here"))
  return small_runs.run(options)


@pytest.mark.slow
def test_workers_give_the_same_bits(here, tmp_path):
  options = small_runs.small_config(
    tmp_path, env=config.EnvConfig(size="tiny", workers=2)
  )
  assert small_runs.bits(small_runs.run(options)) == small_runs.bits(here)


@pytest.mark.slow
def test_a_run_goes_on_while_workers_crash_and_hang(tmp_path):
  env = config.EnvConfig(
    "faulty", size="tiny", workers=2, limits=WorkerLimits(step_s=0.5),
    options=("crash=0.1", "hang=0.05", "slow=0.05", "seed=3"),
  )  # fmt: skip
  options = small_runs.small_config(
    tmp_path, env=env,
    rollout=dataclasses.replace(ROLLOUT, env_threads=2, retries=1),
  )  # fmt: skip
  folder = small_runs.run(options, stop_after=2)
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  assert lines[-1]["policy/stepped"] > 0
  failed, retried = 0, 0
  for line in lines[1:]:
    errors = {k: n for k, n in line.items() if k.startswith("rollout/error/")}
    assert {k.partition("error/")[2] for k in errors} <= {
      "EnvDied", "EnvTimeout",
    }  # fmt: skip
    assert line["rollout/error_share"] == sum(errors.values()) / 6
    assert line["rollout/retries"] == sum(
      n for k, n in line.items() if k.startswith("rollout/retried/")
    )
    failed += sum(errors.values())
    retried += line["rollout/retries"]
  assert retried > 0


@pytest.mark.slow
def test_workers_that_cannot_start_stop_the_run_and_say_why(tmp_path):
  env = config.EnvConfig(
    "faulty", size="tiny", workers=2, options=("crash=2.0",),
    limits=WorkerLimits(backoff_s=0.01),
  )  # fmt: skip
  options = small_runs.small_config(tmp_path, num_updates=1, env=env)
  with pytest.raises(RuntimeError, match=r"all 8 episodes failed.*crash=2\.0"):
    small_runs.run(options)
