"""Task lists: functions of (seed, update), pinned panels, refused names."""

import pytest
from marks import some

from steppo_jax.envs.webshop import tasks as webshop_tasks
from steppo_jax.training import config, players

GENERATED = ["household", "paper_search", "recommend", "search_qa", "webshop"]
# Environment, folder below the shared data, split of a panel.
RECORDED = some(
  ("search_qa", "hotpotqa", "validation"),
  ("paper_search", "paper_search", "auto_test"),
  ("alfworld", "alfworld", "valid_seen"),
  slow=[("webshop", "webshop", "valid_unseen")],
)


@pytest.mark.parametrize("env", GENERATED)
def test_generated_tasks_are_a_function_of_seed_and_update(env):
  tasks = players.make_tasks(config.EnvConfig(name=env, size="tiny"))
  first = tasks.sample(4, seed=1, update=2)
  assert first == tasks.sample(4, seed=1, update=2)
  uids = {t.uid for t in first}
  assert len(uids) == 4
  assert not uids & {t.uid for t in tasks.sample(4, seed=1, update=3)}
  panel = tasks.panel("valid_unseen", 5)
  assert len({t.uid for t in panel}) == 5
  assert tasks.panel("valid_unseen", 3) == panel[:3]
  assert {t.env for t in first + panel} == {env}


@pytest.mark.parametrize(("env", "folder", "split"), RECORDED)
def test_real_tasks_are_a_function_of_seed_and_update(
  env, folder, split, shared_dir
):
  folder = shared_dir / "data" / folder
  if not folder.is_dir():
    pytest.skip(f"no folder {folder}")
  options = config.EnvConfig(name=env, data_dir=str(folder))
  tasks = players.make_tasks(options)
  first = tasks.sample(8, seed=1, update=2)
  assert first == tasks.sample(8, seed=1, update=2)
  assert len({t.uid for t in first}) == 8
  panel = tasks.panel(split, 50)
  assert len({t.uid for t in panel}) == 50
  assert not {t.uid for t in panel} & {
    t.uid for t in tasks.sample(200, seed=0, update=0)
  }
  assert len(tasks.panel(split, 10**6)) > 130


@pytest.mark.parametrize("env", GENERATED)
def test_unknown_sizes_and_splits_are_refused(env):
  options = config.EnvConfig(name=env, size="huge")
  with pytest.raises(ValueError, match=r"env.size='huge' is none of tiny"):
    players.make_tasks(options)
  tasks = players.make_tasks(config.EnvConfig(name=env, size="tiny"))
  with pytest.raises(ValueError, match="split 'test' is none of train"):
    tasks.panel("test", 1)


def test_an_unknown_way_to_split_goals_is_refused():
  with pytest.raises(ValueError, match="by='luck' is none of index, product"):
    webshop_tasks.shopping("tiny", by="luck")
