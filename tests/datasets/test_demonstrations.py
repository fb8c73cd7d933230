"""Demonstrations win, hide nothing, and come back from the disk as made."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from steppo_jax.datasets import demonstrations, options
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import expert
from steppo_jax.envs.household import worlds as household_worlds

OPTIONS = options.Demonstrations(
  split="train", sizes=("tiny", "small"), num_episodes=40, seed=0, detours=1.5
)


def new_game(seed, size="small"):
  task = household_worlds.generate(seed, split="train", size=size)
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  )
  return game, task


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  demonstrations.prepare(folder, OPTIONS)
  return folder


def test_episodes_have_the_form_of_rlds(data_dir):
  episodes = demonstrations.load(data_dir, OPTIONS)
  assert len(episodes) == 40
  for episode in episodes:
    steps = episode["steps"]
    last = len(steps) - 1
    assert [s["is_first"] for s in steps] == [True] + [False] * last
    assert [s["is_last"] for s in steps] == [False] * last + [True]
    assert [s["is_terminal"] for s in steps] == [False] * last + [True]
    assert [s["reward"] for s in steps] == [0.0] * (last - 1) + [1.0, 0.0]
    assert steps[-1]["action"] == ""
    assert all(s["action"] for s in steps[:-1])
    assert episode["task"] in steps[0]["observation"]
    assert episode["golden_steps"] <= last


def test_episodes_are_the_games_played_again(data_dir):
  episodes = demonstrations.load(data_dir, OPTIONS)
  uids = {episode["uid"] for episode in episodes}
  assert len(uids) == 40
  assert {e["size"] for e in episodes} == {"tiny", "small"}
  games = {OPTIONS.task(i).uid: OPTIONS.task(i) for i in range(40)}
  for episode in episodes:
    task = games[episode["uid"]]
    assert episode["family"] == task.family
    assert episode["golden_steps"] == task.golden_steps
    game = household.Game.from_compact(
      task.payload["game"], task.payload["task"], dialect="move"
    )
    assert game.reset() == episode["steps"][0]["observation"]
    for step, after in zip(
      episode["steps"], episode["steps"][1:], strict=False
    ):
      assert step["action"] in game.admissible_commands
      assert game.step(step["action"]) == after["observation"]
    assert game.won


def test_episodes_are_read_at_random(data_dir):
  episodes = demonstrations.load(data_dir, OPTIONS)
  in_order = list(episodes)
  assert episodes[-1] == in_order[39]
  assert [episodes[np.int64(i)] for i in (7, 3)] == [in_order[7], in_order[3]]
  with pytest.raises(IndexError, match="example 40 of 40"):
    episodes[40]


def test_preparing_again_changes_nothing(data_dir):
  folder = demonstrations.prepare(data_dir, OPTIONS)
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert demonstrations.prepare(data_dir, OPTIONS) == folder
  assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_equal_options_give_equal_episodes(data_dir, tmp_path):
  demonstrations.prepare(tmp_path, OPTIONS)
  first = list(demonstrations.load(data_dir, OPTIONS))
  assert list(demonstrations.load(tmp_path, OPTIONS)) == first


def test_other_options_are_other_data(data_dir):
  other = dataclasses.replace(OPTIONS, seed=1)
  with pytest.raises(ValueError, match="there are: train-tiny_small-n40-seed0"):
    demonstrations.load(data_dir, other)
  demonstrations.prepare(data_dir, other)
  uids = {e["uid"] for e in demonstrations.load(data_dir, OPTIONS)}
  others = {e["uid"] for e in demonstrations.load(data_dir, other)}
  assert not uids & others


def test_a_kill_before_the_digests_is_made_good(tmp_path):
  folder = demonstrations.prepare(tmp_path, OPTIONS)
  (folder / "sha256.json").unlink()
  with pytest.raises(ValueError, match="no demonstrations at"):
    demonstrations.load(tmp_path, OPTIONS)
  demonstrations.prepare(tmp_path, OPTIONS)
  assert len(demonstrations.load(tmp_path, OPTIONS)) == 40


@pytest.mark.parametrize("fault", ["flip", "cut", "remove", "digests"])
def test_a_broken_file_is_named(tmp_path, fault):
  folder = demonstrations.prepare(tmp_path, OPTIONS)
  (path,) = folder.glob("*.array_record-*")
  data = bytearray(path.read_bytes())
  if fault == "flip":
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
  elif fault == "cut":
    path.write_bytes(data[:-100])
  elif fault == "remove":
    path.unlink()
  else:
    path = folder / "sha256.json"
    path.write_text('{"a')
  for call in (demonstrations.load, demonstrations.prepare):
    with pytest.raises(RuntimeError, match="remove that folder") as raised:
      call(tmp_path, OPTIONS)
    assert path.name in str(raised.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"split": "test"}, "split must be one of train, valid_seen"),
    ({"sizes": ("tiny", "huge")}, "among tiny, small, .* got 'huge'"),
    ({"sizes": "tiny"}, "sizes must be a tuple"),
    ({"sizes": ()}, "sizes must be a tuple"),
    ({"num_episodes": 0}, "num_episodes must be 1 to"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"detours": -0.5}, "detours must be at least 0"),
    ({"detours": math.nan}, "detours must be at least 0"),
    ({"noise": -0.1}, "noise must be in"),
    ({"noise": 1.0}, "noise must be in"),
  ],
)
def test_wrong_options_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(OPTIONS, **change)


def test_a_wrong_folder_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"no demonstrations at .*absent"):
    demonstrations.load(tmp_path / "absent", OPTIONS)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="data_dir must be a folder"):
    demonstrations.prepare(tmp_path / "file", OPTIONS)


def test_neither_tensorflow_nor_jax_is_imported():
  code = (
    "import sys; from steppo_jax.datasets import demonstrations\n"
    "bad = [m for m in sys.modules if m in ('tensorflow', 'jax')]\n"
    "sys.exit(f'imported {bad}' if bad else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_without_detours_the_plan_is_shortest():
  for seed in range(30):
    game, task = new_game(seed)
    _, commands = expert.demonstrate(game, detours=0, noise=0, random=None)
    assert len(commands) == task.golden_steps
    assert game.won


@pytest.mark.parametrize("size", household_worlds.SIZES)
def test_a_full_search_uses_only_what_was_seen(size):
  for seed in range(30):
    game, _ = new_game(seed, size)
    observations, commands = expert.demonstrate(
      game, detours=math.inf, noise=0, random=np.random.default_rng(seed)
    )
    assert game.won
    assert household.household_text.NOTHING not in observations
    assert len(observations) == len(commands) + 1
    read = ""
    for observation, command in zip(observations, commands, strict=False):
      read += observation
      if command.startswith(("take ", "use ")):
        thing = " ".join(command.split()[1:3])
        assert f"a {thing}" in read


@pytest.mark.slow
def test_more_detours_are_longer_episodes():
  def mean_length(detours):
    random = np.random.default_rng(0)
    lengths = []
    for seed in range(60):
      game, _ = new_game(seed, "medium")
      _, commands = expert.demonstrate(
        game, detours=detours, noise=0, random=random
      )
      lengths.append(len(commands))
    return np.mean(lengths)

  none, one, all_ = map(mean_length, (0, 1, math.inf))
  assert none < one < all_


def test_noise_plays_only_what_is_admissible_and_still_wins():
  for seed in range(30):
    game, task = new_game(seed, "medium")
    observations, commands = expert.demonstrate(
      game, detours=math.inf, noise=0.7, random=np.random.default_rng(seed)
    )
    assert game.won
    assert household.household_text.NOTHING not in observations
    assert len(commands) >= task.golden_steps


def test_the_share_of_noise_is_what_was_asked_for():
  astray = total = 0
  for seed in range(60):
    game, _ = new_game(seed)
    _, commands = expert.demonstrate(
      game, detours=0, noise=0.5, random=np.random.default_rng(seed)
    )
    total += len(commands)
    game.reset()
    for command in commands:
      astray += command != game.plan()[0]
      game.step(command)
  # One in about six of the random commands is the plan's own.
  assert 0.35 < astray / total < 0.5
