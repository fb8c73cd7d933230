"""Generated games: valid, won by their plans, and cleanly split."""

import collections
import hashlib
import json
import subprocess
import sys

import pytest

from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import pddl as household_pddl
from steppo_jax.envs.household import worlds as household_worlds

_SIZES = ("tiny", "small", "medium", "full")
_SPLITS = ("train", "valid_seen", "valid_unseen")
# Changes with the tables and the generator, and with nothing else.
_DIGEST = "9e32e9f22ee47a2053e3e2e13684f4560b6700b5928833e6bee36de7a8441045"


def _tasks(count, split="train", size="tiny"):
  return [
    household_worlds.generate(seed, split=split, size=size)
    for seed in range(count)
  ]


def _game(task):
  return household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  )


def _combination(task):
  """Family, object type and target type, read off the goal."""
  literals = [literal for literal in task.payload["game"]["G"]]
  types = {
    literal[1]: literal[2].removesuffix("type")
    for literal in literals
    if literal[0] in ("objecttype", "receptacletype")
  }
  if task.family != "look_at_obj_in_light":
    return task.family, types.get("?o", types.get("?o1")), types["?r"]
  game = task.payload["game"]
  lamp = next(o for o in game["O"] if o[1] == types["?ot"])
  return task.family, types["?o"], game["R"][lamp[3][0]][1]


def _assert_valid(task):
  compact = task.payload["game"]
  receptacles = [r[0] for r in compact["R"]]
  for name, otype, bits, inside, places in compact["O"]:
    assert name.split()[0] == otype
    (r,) = inside
    assert places == [compact["R"][r][2]]
    assert otype in compact["C"][compact["R"][r][1]] or bits & 16, name
  assert len({*receptacles, *(o[0] for o in compact["O"])}) == (
    len(receptacles) + len(compact["O"])
  )
  game = _game(task)
  words = task.payload["task"].strip(".").split()
  _, otype, target = _combination(task)
  assert otype in words
  assert target in words or task.family == "look_at_obj_in_light"
  assert not game.won
  plan = game.plan()
  assert len(plan) == task.golden_steps >= 3
  for command in plan:
    assert not game.won
    assert command in game.admissible_commands
    game.step(command)
  assert game.won


@pytest.mark.parametrize("size", _SIZES)
def test_generated_games_are_valid_and_won_by_their_plans(size):
  for split in _SPLITS:
    for task in _tasks(60, split, size):
      _assert_valid(task)


@pytest.mark.slow
@pytest.mark.parametrize("size", _SIZES)
def test_two_thousand_games_of_each_size_are_valid_and_won(size):
  for task in _tasks(2000, "train", size):
    _assert_valid(task)


@pytest.mark.parametrize(
  ("size", "least", "most"),
  [("tiny", 4, 5), ("small", 6, 8), ("medium", 10, 14), ("full", 20, 28)],
)
def test_sizes_bound_the_number_of_receptacles(size, least, most):
  counts = {len(task.payload["game"]["R"]) for task in _tasks(200, size=size)}
  assert min(counts) == least
  assert most - 1 <= max(counts) <= most


@pytest.mark.slow
def test_families_are_about_equally_likely():
  families = collections.Counter(task.family for task in _tasks(1200))
  assert families.keys() == set(household_worlds.FAMILIES)
  # 200 each on average, with a standard deviation of 13.
  assert all(150 < count < 250 for count in families.values())


@pytest.mark.slow
def test_held_out_combinations_are_in_valid_unseen_alone():
  seen, unseen = set(), set()
  for size in ("tiny", "full"):
    for split in ("train", "valid_seen"):
      seen |= {_combination(task) for task in _tasks(400, split, size)}
    unseen |= {_combination(t) for t in _tasks(400, "valid_unseen", size)}
  assert not seen & unseen
  assert all(household_worlds.is_held_out(*combo) for combo in unseen)
  assert not any(household_worlds.is_held_out(*combo) for combo in seen)
  for combos in (seen, unseen):
    assert {combo[0] for combo in combos} == set(household_worlds.FAMILIES)


@pytest.mark.slow
def test_no_game_is_in_two_splits():
  games = [
    json.dumps(task.payload, sort_keys=True)
    for split in _SPLITS
    for task in _tasks(400, split)
  ]
  uids = {task.uid for split in _SPLITS for task in _tasks(400, split)}
  assert len(set(games)) == len(games) == len(uids) == 1200


def test_games_are_the_same_in_every_process_and_year():
  program = (
    "import hashlib, json; from steppo_jax.envs.household import worlds as w;"
    "tasks = [w.generate(s, split='train', size=z).payload for s in range(20)"
    " for z in w.SIZES];"
    "print(hashlib.sha256(json.dumps(tasks).encode()).hexdigest())"
  )
  digests = {
    subprocess.run(
      [sys.executable, "-c", program],
      env={"PYTHONHASHSEED": seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
    for seed in ("1", "2")
  }
  payloads = [
    household_worlds.generate(seed, split="train", size=size).payload
    for seed in range(20)
    for size in household_worlds.SIZES
  ]
  here = hashlib.sha256(json.dumps(payloads).encode()).hexdigest()
  assert digests == {here} == {_DIGEST}


def test_some_things_that_are_needed_lie_behind_doors():
  behind = sum(
    any(command.startswith("open") for command in _game(task).plan())
    for task in _tasks(200, size="small")
  )
  assert 20 < behind < 180


def test_pick_two_has_two_and_look_has_a_lamp():
  for task in _tasks(300, size="medium"):
    compact = task.payload["game"]
    kinds = collections.Counter(o[1] for o in compact["O"])
    _, otype, _ = _combination(task)
    if task.family == "pick_two_obj_and_place":
      assert kinds[otype] >= 2
    if task.family == "look_at_obj_in_light":
      toggleable = 1 << household_pddl.FLAGS.index("toggleable")
      lamps = [o for o in compact["O"] if o[2] & toggleable]
      assert len(lamps) == 1


def test_doing_nothing_of_use_never_wins():
  idle = ("look", "inventory", "help", "go to", "open", "close", "examine")
  for task in _tasks(60, size="small"):
    game = _game(task)
    # Walking, opening and looking alone, in every place.
    places = [c for c in game.admissible_commands if c.startswith("go to")]
    for place in places:
      game.step(place)
      for command in game.admissible_commands:
        if command.startswith(idle) and not command.startswith("go to"):
          game.step(command)
          assert not game.won


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"size": "huge"}, "size must be one of tiny, small, medium, full"),
    ({"split": "test"}, "split must be one of train, valid_seen, valid_unseen"),
    ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ({"seed": 0.5}, "seed must be an integer of at least 0, got 0.5"),
  ],
)
def test_unknown_arguments_are_refused(arguments, message):
  arguments = {"seed": 0, "split": "train", "size": "tiny"} | arguments
  with pytest.raises(ValueError, match=message):
    household_worlds.generate(arguments.pop("seed"), **arguments)
