"""Runs of rows that need what a rollout tells, end to end."""

import numpy as np
import pytest
import small_runs
from marks import some

from steppo_jax.learner.options import LearnerConfig
from steppo_jax.storage import metrics
from steppo_jax.training import config

HINDSIGHT = {"name": "stepopsd", "teacher": "hindsight", "span": "action"}
KINDS = {
  "hindsight": HINDSIGHT,
  "actfocus": {"name": "actfocus_grpo"},
  "vetta": {"name": "vetta"},
  "agentopsd": {"name": "agentopsd", "teacher": "peer"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", some("hindsight", slow=KINDS))
def test_a_run_gives_a_row_all_that_it_needs(kind, tmp_path):
  options = small_runs.small_config(
    tmp_path, tasks_per_update=2, group_size=3,
    algorithm=config.AlgorithmConfig(**KINDS[kind]),
    learner=LearnerConfig(num_minibatches=1, critic_epochs=1, critic_warmup=0),
  )  # fmt: skip
  folder = small_runs.run(options, stop_after=1)
  line = metrics.read_jsonl(folder / "metrics.jsonl")[1]
  assert line["policy/stepped"] == 1
  if kind == "hindsight":
    # Nobody succeeds; yet every step is told so.
    assert line["rollout/success"] == 0
    assert line["teacher/covered"] == 1
    assert line["teacher/left_out"] == 0
    assert line["teacher/gap"] != 0
  if kind == "actfocus":
    assert line["batch/reasoning"] == 0
    assert 1 <= line["reference/focus_weight"] <= 1.5
  assert np.isfinite(line["policy/policy_loss"])
