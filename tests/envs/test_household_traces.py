"""Against what the original engine was recorded to say, and its real games."""

import json
import lzma
import tarfile

import pytest

from steppo_jax.envs.household import alfworld
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import pddl as household_pddl


def _records(path):
  with lzma.open(path, "rt", encoding="utf-8") as lines:
    yield from map(json.loads, lines)


def test_every_recorded_state_is_replayed_exactly(alfworld_dir):
  games = states = 0
  for record in _records(alfworld_dir / "textworld_traces.jsonl.xz"):
    game = household.Game.from_pddl(
      record["pddl_problem"], record["task"], dialect="move"
    )
    games += 1
    for expected in record["trace"]:
      command = expected["command"]
      text = game.reset() if command is None else game.step(command)
      where = (record["game"], states, command)
      assert text.strip() == expected["observation"].strip(), where
      assert game.admissible_commands == expected["admissible_commands"], where
      assert game.won == expected["won"], where
      states += 1
  assert (games, states) == (78, 2098)


def test_the_compact_form_of_a_pddl_problem_is_the_one_in_the_data(
  alfworld_dir,
):
  compact = {
    record["id"]: record["game"]
    for record in _records(alfworld_dir / "valid_seen.compact.jsonl.xz")
  }

  def canonical(game):
    # Sets, not lists, in the original: receptacles of an object, C.
    return game | {
      "O": [[*o[:3], sorted(o[3]), sorted(o[4])] for o in game["O"]],
      "C": {key: sorted(value) for key, value in game["C"].items()},
    }

  count = 0
  path = alfworld_dir / "valid_seen.pddl_problems.jsonl.xz"
  for record in _records(path):
    parsed = household_pddl.parse_problem(record["pddl_problem"])
    assert parsed.keys() == compact[record["id"]].keys()
    assert canonical(parsed) == canonical(compact[record["id"]])
    count += 1
  assert count == 140


@pytest.fixture(scope="module")
def release(alfworld_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("release")
  with tarfile.open(alfworld_dir / "original_games_24.tar.xz") as archive:
    archive.extractall(folder, filter="data")
  return folder


def test_both_folder_formats_give_the_same_games(release):
  whole = [
    task
    for split in ("train", "valid_seen")
    for task in alfworld.load_tasks(release, split)
  ]
  for packed in release.glob("json_2.1.1/*/*/*/game.tw-pddl"):
    packed.unlink()
  plain = [
    task
    for split in ("train", "valid_seen")
    for task in alfworld.load_tasks(release, split)
  ]
  assert len(whole) == len(plain) == 24
  for one, other in zip(whole, plain, strict=True):
    assert one.uid == other.uid
    assert one.payload["game"] == other.payload["game"]
    # The wording is drawn at random when a release is made.
    nouns = {o[1] for o in one.payload["game"]["O"]}
    words = [
      set(t.payload["task"].strip(".").split()) & nouns for t in (one, other)
    ]
    assert words[0] == words[1] != set()
    env = household.HouseholdEnv()
    env.reset(one, 0)
    for command in env.game.plan():
      last = env.step(command)
    assert last.terminated


def _assert_plan_wins(task):
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  )
  plan = game.plan()
  assert len(plan) == task.golden_steps, task.uid
  for command in plan:
    assert not game.won, task.uid
    assert command in game.admissible_commands, (task.uid, command)
    game.step(command)
  assert game.won, task.uid


def test_plans_win_a_sample_of_the_real_games(alfworld_dir):
  for task in alfworld.load_tasks(alfworld_dir, "valid_seen"):
    _assert_plan_wins(task)


@pytest.mark.slow
def test_plans_win_every_real_game(alfworld_dir):
  count = 0
  for split in ("train", "valid_seen"):
    for task in alfworld.load_tasks(alfworld_dir, split):
      _assert_plan_wins(task)
      count += 1
  assert count == 3693


def test_plans_are_never_longer_than_those_in_the_data(alfworld_dir):
  path = alfworld_dir / "valid_seen.compact.jsonl.xz"
  given = {f"alfworld/{r['id']}": len(r["plan"]) for r in _records(path)}
  tasks = alfworld.load_tasks(alfworld_dir, "valid_seen")
  assert all(task.golden_steps <= given[task.uid] for task in tasks)
  shorter = sum(task.golden_steps < given[task.uid] for task in tasks)
  # Objects that lie in two receptacles at once; the original engine agrees.
  assert 0 < shorter < 10
