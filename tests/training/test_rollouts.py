"""Episodes of an update are played once, or found, to the same bits."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
import worlds
from small_runs import small_config

from steppo_jax.envs.household import env as household
from steppo_jax.rollout import journal
from steppo_jax.sampler import hand_over
from steppo_jax.training import episodes, players

COUNT = 6


class Played:
  """What one process would do for update 0, in a folder of its own."""

  def __init__(self, folder, **changes):
    config = small_config(folder / "start", tasks_per_update=COUNT)
    rollout = dataclasses.replace(config.rollout, **changes)
    self.config = dataclasses.replace(config, rollout=rollout)
    self.folder = folder
    self.path = journal.path_of(folder / "journal", 0, 0)
    self.ended = []

  def play(self, *, policy=None):
    self.ended.clear()
    with players.make(
      self.config, worlds.model(), worlds.tokenizer()
    ) as playing:
      made = episodes.Rollouts(
        self.config,
        self.folder,
        playing,
        lambda one: self.ended.append(one.uid),
      )
      made.set_policy(jax.device_get(policy or worlds.policy()), 0)
      return made.play(0, worlds.episodes(COUNT))

  def forget(self, left):
    """Cuts the journal amid the frame behind so many trajectories."""
    held = journal.read(self.path)
    whole = list(held.trajectories.values())
    self.path.unlink()
    with journal.Journal(self.path, held.belongs) as book:
      for one in whole[:left]:
        book.append(one)
      size = self.path.stat().st_size
      book.append(whole[left])
    with self.path.open("r+b") as file:
      file.truncate(size + 40)


@pytest.fixture
def played(tmp_path):
  return Played(tmp_path)


def same(a, b):
  return all(journal.same(x, y) for x, y in zip(a, b, strict=True))


def test_what_is_in_the_journal_is_not_played_again(played, monkeypatch):
  first, counted = played.play()
  assert sorted(played.ended) == sorted(one.uid for one in first)

  def broken(*_):
    raise AssertionError("an episode was played")

  monkeypatch.setattr(household.HouseholdEnv, "reset", broken)
  again, found = played.play()
  assert same(first, again)
  assert found == counted
  assert sorted(played.ended) == sorted(one.uid for one in first)


@pytest.mark.parametrize("left", [0, 1, COUNT - 1])
def test_a_rollout_that_was_cut_is_played_to_the_same_bits(played, left):
  first, counted = played.play()
  whole = played.path.read_bytes()
  played.forget(left)
  again, found = played.play()
  assert same(first, again)
  assert found == counted
  # The journal too is what it would have been.
  assert played.path.read_bytes() == whole


def test_with_threads_only_what_is_missing_is_played(tmp_path):
  played = Played(tmp_path, env_threads=2)
  first, counted = played.play()
  ended = list(played.ended)
  played.forget(4)
  again, found = played.play()
  by_uid = {one.uid: one for one in again}
  for one in first:
    if one.uid in ended[:4]:
      assert journal.same(one, by_uid[one.uid])
    else:
      # Other company, other last bits; the tokens depend on the key alone.
      for a, b in zip(one.steps, by_uid[one.uid].steps, strict=True):
        np.testing.assert_array_equal(a.response_ids, b.response_ids)
  assert found["prompt_tokens"] < counted["prompt_tokens"]
  assert sorted(played.ended) == sorted(ended)


def test_where_the_world_has_changed_the_journal_counts(
  played, monkeypatch, caplog
):
  first, _ = played.play()
  played.forget(2)
  kept = list(journal.read(played.path).trajectories)
  step = household.HouseholdEnv.step
  monkeypatch.setattr(
    household.HouseholdEnv, "step",
    lambda self, text: step(self, text)._replace(reward=0.5),
  )  # fmt: skip
  with caplog.at_level(logging.WARNING):
    again, _ = played.play()
  assert caplog.text.count("went differently this time") == 2
  for old, new in zip(first, again, strict=True):
    assert journal.same(old, new) == (old.uid in kept)


def test_episodes_of_another_policy_are_played_anew(played):
  first, _ = played.play()
  again, _ = played.play(policy=worlds.policy(seed=1))
  assert not same(first, again)
  assert played.path.with_name(played.path.name + ".stale").exists()


def test_an_update_of_one_array_marks_another_policy():
  policy = jax.device_get(worlds.policy())
  leaves, tree = jax.tree.flatten(policy)
  marks = {hand_over.mark(policy)}
  for index, leaf in enumerate(leaves):
    changed = leaf.copy()
    changed.reshape(-1)[0] = np.nextafter(changed.reshape(-1)[0], np.inf)
    others = [*leaves[:index], changed, *leaves[index + 1 :]]
    marks.add(hand_over.mark(jax.tree.unflatten(tree, others)))
  assert len(marks) == len(leaves) + 1


def test_without_a_journal_nothing_is_written(played):
  played.config = dataclasses.replace(played.config, keep_journals=None)
  done, _ = played.play()
  assert len(done) == COUNT
  assert not played.path.parent.exists()
