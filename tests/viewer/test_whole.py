"""A run that was trained, and what the viewer shows of it."""

import time

import numpy as np
import pytest
import small_runs

from steppo_jax.rollout import journal
from steppo_jax.storage import credit
from steppo_jax.tokenizer import loading
from steppo_jax.viewer import episode, listing, runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("trained")
  options = small_runs.small_config(
    folder, num_updates=2, keep_journals=9, keep_checkpoints=9
  )
  run = runs.Run(
    0, small_runs.run(options), cache=folder / "cache",
    load_tokenizer=lambda facts: loading.load(facts["tokenizer"]),
  )  # fmt: skip
  run.index.refresh()
  yield run
  run.close()


def test_each_episode_is_shown_with_what_the_learner_made_of_it(trained):
  assert trained.without_text == ""
  trained.credit.start(1)
  while trained.credit.state()[1]["busy"]:
    time.sleep(0.1)
  assert trained.credit.state()[1]["error"] == ""
  found = credit.read(credit.path_of(trained.path, 1))
  assert found.checkpoint_update == 1
  played = journal.read(
    journal.path_of(trained.path / "journal", 1, 0)
  ).trajectories
  asked = {"at_min": "1", "at_max": "1", "split": "train"}
  rows = listing.page(trained.index, asked)["rows"]
  assert {row["uid"] for row in rows} == set(played) == set(found.episodes)
  for row in rows:
    shown = episode.detail(trained, row["id"])
    trajectory = played[row["uid"]]
    steps = found.steps_of(row["uid"])
    assert len(shown["steps"]) == len(trajectory.steps)
    for name in ("advantage", "value", "ratio", "reward"):
      np.testing.assert_array_equal(
        np.array(shown["credit"]["steps"][name], np.float32),
        getattr(found, name)[steps],
      )
    # Nothing has been trained yet: every ratio is one.
    np.testing.assert_allclose(shown["credit"]["steps"]["ratio"], 1, atol=1e-4)
    rewards = np.array([s.reward for s in trajectory.steps], np.float32)
    np.testing.assert_array_equal(shown["credit"]["steps"]["reward"], rewards)
    logp = np.concatenate([s.behaviour_logp for s in trajectory.steps])
    np.testing.assert_allclose(
      shown["credit"]["tokens"]["logp"], logp, atol=1e-4
    )
    for step, one in zip(trajectory.steps, shown["steps"], strict=True):
      assert one["response"]["ids"] == step.response_ids.tolist()
  # Whitened over all steps of the update.
  assert abs(float(found.advantage.mean())) < 1e-4
