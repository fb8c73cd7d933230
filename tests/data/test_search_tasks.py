"""Task lists of question answering and paper search."""

import pytest

from steppo_jax.data import search_tasks

ENVS = sorted(search_tasks.SOURCES)


@pytest.mark.parametrize("env", ENVS)
def test_generated_tasks_are_a_function_of_seed_and_update(env):
  tasks = search_tasks.GeneratedSearchTasks(env, "tiny")
  first = tasks.sample(4, seed=1, update=2)
  assert first == tasks.sample(4, seed=1, update=2)
  uids = {t.uid for t in first}
  assert len(uids) == 4
  assert not uids & {t.uid for t in tasks.sample(4, seed=1, update=3)}
  panel = tasks.panel("valid_unseen", 5)
  assert [t.uid.split("/")[-1] for t in panel] == list("01234")
  assert tasks.panel("valid_unseen", 3) == panel[:3]
  assert {t.env for t in first + panel} == {env}


@pytest.mark.parametrize(
  ("env", "folder", "split"),
  [
    ("search_qa", "hotpotqa", "validation"),
    ("paper_search", "paper_search", "auto_test"),
  ],
)
def test_real_tasks_are_a_function_of_seed_and_update(
  env, folder, split, shared_dir
):
  folder = shared_dir / "data" / folder
  if not folder.is_dir():
    pytest.skip(f"no folder {folder}")
  tasks = search_tasks.RecordedSearchTasks(env, str(folder))
  first = tasks.sample(8, seed=1, update=2)
  assert first == tasks.sample(8, seed=1, update=2)
  assert len({t.uid for t in first}) == 8
  panel = tasks.panel(split, 50)
  assert len({t.uid for t in panel}) == 50
  assert not {t.uid for t in panel} & {
    t.uid for t in tasks.sample(200, seed=0, update=0)
  }
  assert len(tasks.panel(split, 10**6)) > 600


@pytest.mark.parametrize("env", ENVS)
def test_unknown_names_are_refused(env):
  with pytest.raises(ValueError, match=r"env.size='huge' is none of tiny"):
    search_tasks.GeneratedSearchTasks(env, "huge")
  with pytest.raises(ValueError, match="split 'test' is none of train"):
    search_tasks.GeneratedSearchTasks(env, "tiny").panel("test", 1)
  with pytest.raises(ValueError, match=r"env.name='chess' has no search tasks"):
    search_tasks.RecordedSearchTasks("chess", "nowhere")
