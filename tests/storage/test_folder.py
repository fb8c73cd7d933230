"""A run's folder belongs to its options, also those of an older version."""

import dataclasses
import json

import pytest

from steppo_jax.learner.options import LearnerConfig
from steppo_jax.storage import folder
from steppo_jax.training import config


@pytest.fixture
def run(tmp_path):
  made = config.RunConfig(weights="w", run_dir=str(tmp_path / "run"))
  folder.open_folder(made, "test", "test")
  return made


def forget(run, *keys):
  """Writes the options as a version did that had none of these."""
  file = folder.pathlib.Path(run.run_dir) / folder.CONFIG_NAME
  options = json.loads(file.read_text())
  for *groups, name in keys:
    group = options
    for one in groups:
      group = group[one]
    del group[name]
  file.write_text(json.dumps(options))


def test_other_options_are_refused(run):
  other = dataclasses.replace(run, num_updates=7)
  with pytest.raises(ValueError, match="num_updates=60 there, 7 now"):
    folder.open_folder(other, "test", "test")


def test_what_is_computed_again_may_change(run):
  learner = dataclasses.replace(run.learner, remat="full")
  folder.open_folder(dataclasses.replace(run, learner=learner), "test", "test")


def test_a_run_goes_on_in_a_version_with_more_options(run):
  forget(run, ("learner", "optimizer"), ("rollout", "staleness"), ("agents",))
  folder.open_folder(run, "test", "test")
  learner = LearnerConfig(optimizer="muon")
  with pytest.raises(ValueError, match=r"learner\.optimizer=adamw there, muon"):
    folder.open_folder(
      dataclasses.replace(run, learner=learner), "test", "test"
    )


def test_an_option_without_a_default_has_to_be_there(run):
  forget(run, ("weights",))
  with pytest.raises(ValueError, match="weights=None there, w now"):
    folder.open_folder(run, "test", "test")
