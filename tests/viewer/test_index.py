"""The index of a run's episodes: what it lists, follows and survives."""

import dataclasses
import fcntl
import json
import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import recorded_runs

from steppo_jax.datasets import tables, trajectories
from steppo_jax.rollout import codec, journal
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.storage import labels
from steppo_jax.viewer import episode, listing, runs, sources


def opened(path, cache):
  return runs.Run(
    0, path, cache=cache, load_tokenizer=lambda _: recorded_runs.tokenizer()
  )


@pytest.fixture
def look(tmp_path):
  """Opens runs with an index of their own, and closes them."""
  made = []

  def look(path):
    made.append(opened(path, tmp_path / "cache"))
    made[-1].index.refresh()
    return made[-1]

  yield look
  for run in made:
    run.close()


def uids(run, **asked):
  return {row["uid"] for row in listing.page(run.index, asked)["rows"]}


def episodes_of(run_number=0, **more):
  return recorded_runs.update_of(
    run_number, **({"groups": 4, "samples": 2, "steps": 5} | more)
  )


def test_it_lists_every_episode_and_gives_back_what_was_written(tmp_path, look):
  run = look(recorded_runs.make(tmp_path / "run", updates=3))
  found = listing.page(run.index, {})
  assert found["total"] == 24
  written = {t.uid: t for update in range(3) for t in episodes_of(update)}
  for row in found["rows"]:
    whole = written[row["uid"]]
    assert journal.same(episode.read(run, row["id"]), whole)
    assert row["steps"] == len(whole.steps)
    assert row["at"] == int(whole.uid.split("-")[0])
    assert row["reward"] == pytest.approx(whole.total_reward)
    assert row["success"] == whole.success


def test_filters_leave_what_they_say(tmp_path, look):
  run = look(recorded_runs.make(tmp_path / "run", updates=5))
  all_of = [t for update in range(5) for t in episodes_of(update)]
  won = {t.uid for t in all_of if t.success and t.error is None}
  assert uids(run, success="1") == won
  assert uids(run, failed="1") == {t.uid for t in all_of if t.error}
  assert uids(run, cause="EnvTimeout") == uids(run, failed="1")
  assert uids(run, family="heat") == {
    t.uid for t in all_of if t.task.family == "heat"
  }
  assert uids(run, at_min="2", at_max="3") == {
    t.uid for t in all_of if t.uid[0] in "23"
  }
  assert uids(run, reward_min="0.5") == {
    t.uid for t in all_of if t.total_reward >= 0.5
  }
  assert uids(run, task="household-small-train-3") == {
    t.uid for t in all_of if t.task.uid == "household-small-train-3"
  }
  rows = listing.page(run.index, {"order": "-reward"})["rows"]
  rewards = [row["reward"] for row in rows]
  assert rewards == sorted(rewards, reverse=True)


def test_words_are_found_in_prompts_and_responses(tmp_path, look):
  rng = np.random.default_rng(0)
  path = recorded_runs.make(tmp_path / "run", updates=1)
  task = recorded_runs.task_of(0)
  rare = recorded_runs.episode(
    "rare", task, steps=3, rng=rng, said=("polish the golden lamp",)
  )
  seen = recorded_runs.episode(
    "seen", task, steps=3, rng=rng, seen=("A room.", "A zebra walks by.")
  )
  recorded_runs.write_journal(path, 1, [rare, seen])
  run = look(path)
  assert uids(run, text="golden") == {"rare"}
  assert uids(run, text="gold") == {"rare"}  # Still being typed.
  assert uids(run, text="gold ") == set()
  assert uids(run, text='"the golden lamp"') == {"rare"}
  assert uids(run, text='"golden the lamp"') == set()
  assert uids(run, text="zebra") == {"seen"}
  assert uids(run, text="golden zebra") == set()
  assert len(uids(run, text="drawer")) > 2


@hypothesis.given(st.dictionaries(
  st.sampled_from([
    "text", "task", "family", "split", "cause", "env", "success", "failed",
    "label", "order", "page", "at_min", "reward_max", "steps_min", "other",
  ]),
  st.text("aé1-. \"'*:;%^()\x00\ud83d\U0001f600", max_size=20), max_size=5,
))  # fmt: skip
@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_whatever_is_asked_is_answered_or_refused_in_words(shared_index, asked):
  try:
    found = listing.page(shared_index, asked)
  except ValueError as error:
    refused = str(error)
    assert "=" in refused
  else:
    assert 0 <= len(found["rows"]) <= found["total"] <= 24


@pytest.fixture(scope="module")
def shared_index(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shared")
  run = opened(recorded_runs.make(folder / "run"), folder / "cache")
  run.index.refresh()
  yield run.index
  run.close()


def test_a_journal_that_grows_is_followed_without_reading_it_again(
  tmp_path, look, monkeypatch
):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  made = episodes_of(7)
  with journal.Journal(path / "journal" / "7-0.journal", {"a": 1}) as file:
    file.append(made[0])
    run = look(path)
    assert uids(run, at_min="7") == {made[0].uid}
    starts = []
    real = sources.read
    monkeypatch.setattr(
      sources,
      "read",
      lambda s, start: (starts.append(start), real(s, start))[1],
    )
    for one in made[1:]:
      file.append(one)
    run.index.refresh()
  assert uids(run, at_min="7") == {t.uid for t in made}
  assert len(starts) == 1  # The other journal is not touched.
  assert starts[0] > 0
  run.index.refresh()
  assert len(starts) == 1


@pytest.mark.parametrize("cut", [1, 19, 21, 300])
def test_a_journal_that_is_half_written_shows_its_whole_episodes(
  tmp_path, look, cut
):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  made = episodes_of(1)
  file = recorded_runs.write_journal(path, 1, made, ended=False)
  whole = file.read_bytes()
  file.write_bytes(whole[:-cut])
  run = look(path)
  assert uids(run, at_min="1") == {t.uid for t in made[:-1]}
  assert "no whole episode" in run.index.progress.faults["journal/1-0.journal"]
  with open(file, "ab") as end:
    end.write(whole[-cut:])
  run.index.refresh()
  assert uids(run, at_min="1") == {t.uid for t in made}
  assert not run.index.progress.faults


def test_damage_within_a_journal_is_told_and_costs_what_follows(tmp_path, look):
  path = recorded_runs.make(tmp_path / "run", updates=2)
  file = path / "journal" / "1-0.journal"
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  run = look(path)
  assert 0 < len(uids(run, at_min="1")) < 8
  assert len(uids(run, at_max="0")) == 8
  assert "damaged" in run.index.progress.faults["journal/1-0.journal"]


@hypothesis.given(st.data())
@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_however_a_journal_is_damaged_what_is_listed_is_whole(
  some_journal, data
):
  made, whole = some_journal
  written = bytearray(whole)
  for _ in range(data.draw(st.integers(0, 2))):
    written[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(
      st.integers(1, 255)
    )
  cut = data.draw(st.integers(0, len(whole)))
  with tempfile.TemporaryDirectory() as folder:
    run_folder = pathlib.Path(folder) / "run"
    (run_folder / "journal").mkdir(parents=True)
    file = run_folder / "journal" / "1-0.journal"
    file.write_bytes(written[:cut])
    run = opened(run_folder, pathlib.Path(folder) / "cache")
    run.index.refresh()
    rows = listing.page(run.index, {"order": "uid"})["rows"]
    assert [r["uid"] for r in rows] == [t.uid for t in made[: len(rows)]]
    for row in rows:
      one = next(t for t in made if t.uid == row["uid"])
      assert journal.same(episode.read(run, row["id"]), one)
    if written[:cut] != whole[:cut]:
      assert run.index.progress.faults
    run.close()


@pytest.fixture(scope="module")
def some_journal(tmp_path_factory):
  made = episodes_of(1, groups=2, steps=3)
  path = recorded_runs.write_journal(tmp_path_factory.mktemp("one"), 1, made)
  return made, path.read_bytes()


@pytest.mark.parametrize(
  "contents", [b"", b"\x00" * 40, b"no journal at all, but some text " * 9]
)
def test_a_file_that_is_no_journal_hides_no_other(tmp_path, look, contents):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  (path / "journal" / "5-0.journal").write_bytes(contents)
  (path / "journal" / "notes.txt").write_bytes(contents)
  run = look(path)
  assert len(uids(run)) == 8


def test_a_whole_frame_of_another_format_is_told(tmp_path, look):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  file = path / "journal" / "0-0.journal"
  odd = codec.frame(json.dumps({"uid": "x", "steps": 3}).encode() + b"\n")
  file.write_bytes(file.read_bytes() + odd)
  run = look(path)
  assert len(uids(run)) == 8
  assert "another format" in run.index.progress.faults["journal/0-0.journal"]


def test_a_journal_that_is_replaced_or_removed_is_read_again(tmp_path, look):
  path = recorded_runs.make(tmp_path / "run", updates=2)
  run = look(path)
  longer = episodes_of(1, groups=2, steps=30)
  other = [dataclasses.replace(t, success=True) for t in longer]
  file = path / "journal" / "1-0.journal"
  file.rename(path / "journal" / "1-0.journal.stale")
  before = (path / "journal" / "1-0.journal.stale").stat().st_size
  assert recorded_runs.write_journal(path, 1, other).stat().st_size > before
  run.index.refresh()
  assert uids(run, at_min="1") == {t.uid for t in other}
  number = listing.page(run.index, {"at_min": "1"})["rows"][0]["id"]
  assert episode.detail(run, number)["success"]
  file.unlink()
  with pytest.raises(LookupError, match="keep_journals"):
    episode.detail(run, number)
  run.index.refresh()
  with pytest.raises(LookupError, match="no episode"):
    episode.detail(run, number)
  assert uids(run) == {t.uid for t in episodes_of(0)}
  assert uids(run, text="drawer") == uids(run)


def test_an_index_that_is_damaged_is_made_anew(tmp_path):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  run = opened(path, tmp_path / "cache")
  run.index.refresh()
  run.close()
  (file,) = (tmp_path / "cache").glob("*.sqlite")
  file.write_bytes(b"not a database, " * 400)
  run = opened(path, tmp_path / "cache")
  run.index.refresh()
  assert len(uids(run)) == 8
  run.close()


def test_recorded_tables_are_read_and_journals_come_first(tmp_path, look):
  path = recorded_runs.make(tmp_path / "run", updates=2)
  (path / "data").mkdir()
  for update in (1, 9):
    tables.write(
      path / "data" / f"update{update}", {"train": episodes_of(update)},
      recorded_runs.tokenizer(), "jsonl",
    )  # fmt: skip
  run = look(path)
  assert len(uids(run)) == 24  # Update 1 is in both.
  assert len(uids(run, at_min="1", at_max="1")) == 8
  row = listing.page(run.index, {"at_min": "9"})["rows"][0]
  written = {t.uid: t for t in episodes_of(9)}
  assert journal.same(episode.read(run, row["id"]), written[row["uid"]])
  # What a journal hid comes forth when the run lets go of it.
  (path / "journal" / "1-0.journal").unlink()
  run.index.refresh()
  assert len(uids(run, at_min="1", at_max="1")) == 8


def test_a_dataset_of_its_own_is_looked_at_by_its_splits(tmp_path, look):
  made = episodes_of(0)
  tables.write(
    tmp_path / "set", {"valid_seen": made[:3], "valid_unseen": made[:2]},
    recorded_runs.tokenizer(), "parquet",
  )  # fmt: skip
  run = look(tmp_path / "set")
  assert listing.page(run.index, {})["total"] == 5
  assert len(uids(run, split="valid_unseen")) == 2
  for row in listing.page(run.index, {})["rows"]:
    found = episode.detail(run, row["id"])
    assert found["uid"] == row["uid"]
    assert found["steps"][0]["staleness"] is None


def test_a_pool_is_read_while_others_write_and_keeps_its_labels(tmp_path, look):
  file = tmp_path / "pool.sqlite"
  made = episodes_of(0)[:2]
  with pool_lib.Pool(file) as pool:
    pool.issue("g", made[0].task, [(t.uid, (0,), 0) for t in made])
    pool.start("me", 60, uid=made[0].uid)
    pool.finish(made[0], "me", labels={"good": "yes"}, notes="as sent")
    run = look(file)
    assert uids(run) == {made[0].uid}
    pool.start("me", 60, uid=made[1].uid)
    pool.finish(made[1], "me")
    run.index.refresh()
    assert uids(run) == {t.uid for t in made}
    assert uids(run, label="note") == {made[0].uid}
    told = run.set_label(made[1].uid, "train", labels.Label("exclude", "loops"))
    assert told == ""
    run.index.refresh()
    assert uids(run, label="exclude") == {made[1].uid}
    # The learner gets the rest.
    assert [t.uid for t in pool.lease("learner", 60)] == [made[0].uid]
    told = run.set_label(made[0].uid, "train", labels.Label("exclude", ""))
    assert "left out of exports alone" in told
  assert not (tmp_path / labels.FILE_NAME).exists()


def test_labels_lie_in_the_run_folder_and_the_last_one_counts(tmp_path, look):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  run = look(path)
  run.set_label("0-0-0", "train", labels.Label("exclude", "loops \ud83d"))
  run.set_label("0-0-1", "train", labels.Label("exclude", ""))
  run.set_label("0-0-1", "train", labels.Label("keep", ""))
  with open(path / labels.FILE_NAME, "a") as file:
    file.write('{"uid": "0-1-0", "ver')  # A kill cut it.
  run.set_label("0-1-1", "train", labels.Label("", "só"))
  run.index.refresh()
  assert uids(run, label="exclude") == {"0-0-0"}
  assert uids(run, label="keep") == {"0-0-1"}
  assert uids(run, label="note") == {"0-0-0", "0-1-1"}
  assert len(uids(run, label="none")) == 6
  assert labels.excluded(path) == {"0-0-0"}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_dataset_is_loaded_without_what_the_labels_exclude(tmp_path, form):
  run = recorded_runs.make(tmp_path / "run", updates=1)
  made = episodes_of(0)
  folder = trajectories.write(
    run / "data", "update0", {"train": made}, recorded_runs.tokenizer(), form
  )
  labels.add(run, made[2].uid, labels.Label("exclude", "loops"))
  labels.add(run, made[3].uid, labels.Label("keep", ""))
  labels.add(run, made[4].uid, labels.Label("exclude", ""), split="valid")
  kept = trajectories.load(folder, "train", labels=run)
  assert [t.uid for t in kept] == [t.uid for t in made if t is not made[2]]
  assert kept[2].uid == made[3].uid
  assert len(trajectories.load(folder, "train")) == len(made)


def test_a_folder_without_anything_is_refused_and_an_empty_run_is_shown(
  tmp_path, look
):
  (tmp_path / "nothing").mkdir()
  with pytest.raises(ValueError, match="is no run"):
    look(tmp_path / "nothing")
  with pytest.raises(ValueError, match="there is no"):
    look(tmp_path / "missing")
  (tmp_path / "nothing" / "config.json").write_text("{}")
  run = look(tmp_path / "nothing")
  assert uids(run) == set()
  assert runs.names([run]) == []
  assert run.times() is None


def test_of_two_viewers_of_a_run_one_reads_and_both_show(tmp_path, look):
  path = recorded_runs.make(tmp_path / "run", updates=2)
  first, second = look(path), look(path)
  recorded_runs.write_journal(path, 2, episodes_of(2))
  (file,) = (tmp_path / "cache").glob("*.lock")
  with open(file, "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    first.index.refresh()
    assert listing.page(first.index, {})["total"] == 16
  second.index.refresh()
  first.index.refresh()
  for run in (first, second):
    assert listing.page(run.index, {})["total"] == 24
    assert run.index.progress.episodes == 24


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
  path = recorded_runs.make(tmp_path / "run", updates=1)
  (tmp_path / "file").write_text("")
  with pytest.raises(RuntimeError, match="--cache"):
    opened(path, tmp_path / "file" / "cache")
