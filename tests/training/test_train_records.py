"""Episodes that a run keeps as datasets."""

import shutil

import pytest
import small_runs
import worlds

from steppo_jax.datasets import trajectories
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import train


@pytest.mark.slow
def test_episodes_of_some_updates_are_kept_and_come_back(tmp_path):
  options = small_runs.small_config(tmp_path, record_every=2)
  folder = run_folder.open_folder(options, "test", "test")
  played = []
  train.train(
    options, folder, on_update=lambda *_: None, on_episode=played.append
  )
  kept = folder / "data" / "trajectory_set"
  assert sorted(p.name for p in kept.iterdir()) == ["update0", "update2"]
  digest = worlds.tokenizer().digest
  for update in (0, 2):
    found = trajectories.load(
      trajectories.folder_of(folder / "data", f"update{update}"), "train",
      tokenizer=digest,
    )  # fmt: skip
    want = {t.uid: t for t in played[6 * update : 6 * update + 6]}
    assert {t.uid for t in found} == set(want)
    for one in found:
      for step, other in zip(one.steps, want[one.uid].steps, strict=True):
        assert step.response_ids.tolist() == other.response_ids.tolist()
        assert (step.behaviour_logp == other.behaviour_logp).all()
        assert step.reward == other.reward
  # Begun again without its checkpoints, a run finds its episodes there.
  shutil.rmtree(folder / run_folder.CHECKPOINTS_NAME)
  small_runs.run(options)
