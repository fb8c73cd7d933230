"""Plans against a blind breadth-first search that plays the game itself."""

import json
import random

import pytest

from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds

_IDLE = ("examine", "help", "inventory", "look")


def _shortest_by_search(game, limit):
  """Length of a shortest win of at most `limit` steps, else None.

  Knows the game by its public methods alone.
  """
  start = game.save()
  frontier, seen = [start], {json.dumps(start)}
  found = 0 if game.won else None
  for depth in range(1, limit + 1):
    if found is not None or not frontier:
      break
    following = []
    for state in frontier:
      game.restore(state)
      for command in game.admissible_commands:
        if command.startswith(_IDLE):
          continue
        game.restore(state)
        game.step(command)
        if game.won:
          found = depth
          break
        after = game.save()
        key = json.dumps(after)
        if key not in seen:
          seen.add(key)
          following.append(after)
      if found is not None:
        break
    frontier = following
  game.restore(start)
  return found


def _wins(game, plan):
  start = game.save()
  for command in plan:
    assert not game.won
    assert command in game.admissible_commands, command
    game.step(command)
  won = game.won
  game.restore(start)
  return won


def _compact(**changes):
  """Two shelves, a drawer, a sink; two cloths, one of them in the drawer."""
  game = {
    "R": [
      ["drawer 1", "drawer", 0, 1],
      ["shelf 2", "shelf", 1, 0],
      ["shelf 1", "shelf", 2, 0],
      ["sinkbasin 1", "sinkbasin", 3, 0],
    ],
    "O": [
      ["cloth 2", "cloth", 3, [0], [0]],
      ["cloth 1", "cloth", 3, [1], [1]],
      ["soapbar 1", "soapbar", 3, [1], [1]],
    ],
    "C": {
      "drawer": ["cloth", "soapbar"],
      "shelf": ["cloth", "soapbar"],
      "sinkbasin": ["cloth"],
    },
    "A": 4,
    "G": [
      ["objecttype", "?o1", "clothtype"],
      ["receptacletype", "?r", "shelftype"],
      ["inreceptacle", "?o1", "?r"],
      ["not", ["=", "?o1", "?o2"]],
      ["objecttype", "?o2", "clothtype"],
      ["receptacletype", "?r", "shelftype"],
      ["inreceptacle", "?o2", "?r"],
    ],
  }
  return household.Game.from_compact(game | changes, "do it.", dialect="move")


def test_two_different_objects_are_wanted():
  game = _compact()
  # One cloth is on shelf 2, so bring the other: go, open, take, go, put.
  assert game.plan() == [
    "go to drawer 1",
    "open drawer 1",
    "take cloth 2 from drawer 1",
    "go to shelf 2",
    "move cloth 2 to shelf 2",
  ]
  assert _wins(game, game.plan())


def test_a_full_hand_is_emptied_first():
  game = _compact()
  game.step("go to shelf 2")
  game.step("take soapbar 1 from shelf 2")
  plan = game.plan()
  # Lay it down here or in the drawer, and then the five steps from above.
  assert len(plan) == 6
  assert _wins(game, plan)


def test_an_object_is_taken_out_again_to_be_cleaned():
  goal = [
    ["cleanable", "?o"],
    ["objecttype", "?o", "clothtype"],
    ["receptacletype", "?r", "shelftype"],
    ["isclean", "?o"],
    ["inreceptacle", "?o", "?r"],
  ]
  plan = _compact(G=goal).plan()
  assert plan[:4] == [
    "go to shelf 2",
    "take cloth 1 from shelf 2",
    "go to sinkbasin 1",
    "clean cloth 1 with sinkbasin 1",
  ]
  assert len(plan) == 6


def test_an_object_in_two_places_stays_at_its_goal_while_it_is_cleaned():
  things = [["cloth 1", "cloth", 3, [1, 2], [1]]]
  goal = [
    ["objecttype", "?o", "clothtype"],
    ["isclean", "?o"],
    ["receptacletype", "?r", "shelftype"],
    ["inreceptacle", "?o", "?r"],
  ]
  game = _compact(O=things, G=goal)
  # Taken from one shelf it is still on the other: go, take, go, clean.
  assert len(game.plan()) == 4
  assert _wins(game, game.plan())
  assert _shortest_by_search(game, 4) == 4


def test_the_cheapest_choice_is_found_where_bounds_are_loose():
  things = [
    ["cloth 2", "cloth", 3, [1], [1]],
    ["cloth 1", "cloth", 3, [0], [0]],
    ["soapbar 1", "soapbar", 3, [0], [0]],
  ]
  holds = {"drawer": ["soapbar"], "shelf": ["cloth"], "sinkbasin": ["cloth"]}
  goal = [
    ["objecttype", "?o", "clothtype"],
    ["receptacletype", "?r", "sinkbasintype"],
    ["inreceptacle", "?o", "?r"],
  ]
  game = _compact(O=things, C=holds, G=goal)
  for command in (
    "go to drawer 1",
    "open drawer 1",
    "take soapbar 1 from drawer 1",
    "go to sinkbasin 1",
  ):
    game.step(command)
  # The soap fits into the drawer alone, so the cloth there is the nearer one.
  assert game.plan() == [
    "go to drawer 1",
    "move soapbar 1 to drawer 1",
    "take cloth 1 from drawer 1",
    "go to sinkbasin 1",
    "move cloth 1 to sinkbasin 1",
  ]


def test_slices_are_planned(kitchen):
  goal = [
    ["sliceable", "?o"],
    ["objecttype", "?o", "appletype"],
    ["receptacletype", "?r", "microwavetype"],
    ["issliced", "?o"],
    ["ishot", "?o"],
    ["inreceptacle", "?o", "?r"],
  ]
  game = household.Game.from_compact(
    kitchen | {"G": goal}, "put a hot slice in microwave.", dialect="move"
  )
  # Go, take the knife, slice, lay it down, take the apple, go, open, heat, put.
  assert len(game.plan()) == 9
  assert _wins(game, game.plan())
  for _ in range(2):
    game.step(game.plan()[0])
  # Seven steps are left, and fewer do not do.
  assert len(game.plan()) == 7
  assert _shortest_by_search(game, 6) is None


def test_the_older_dialect_gets_its_own_commands():
  task = household_worlds.generate(3, split="train", size="tiny")
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="put"
  )
  assert _wins(game, game.plan())


def test_a_won_game_needs_no_plan():
  game = _compact()
  for command in game.plan():
    game.step(command)
  assert game.plan() == []


def test_what_cannot_be_won_is_an_error_that_names_the_game():
  game = _compact(C={"drawer": ["cloth"]})
  with pytest.raises(ValueError, match=r"game 'do it\.': no sequence"):
    game.plan()


def test_goals_beyond_the_planner_are_named():
  game = _compact(G=[["opened", "?r"], ["receptacletype", "?r", "drawertype"]])
  assert not game.won
  with pytest.raises(ValueError, match=r"does not understand \['opened'"):
    game.plan()
  game.step("go to drawer 1")
  game.step("open drawer 1")
  assert game.won


@pytest.mark.parametrize("seed", range(24))
def test_no_shorter_plan_is_found_by_blind_search(seed):
  task = household_worlds.generate(seed, split="train", size="tiny")
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  )
  # From the start, and from where a wanderer got to.
  rng = random.Random(seed)
  for _ in range(2):
    plan = game.plan()
    assert _wins(game, plan)
    limit = min(len(plan) - 1, 4)
    assert _shortest_by_search(game, limit) is None or not plan
    for _ in range(8):
      busy = [c for c in game.admissible_commands if not c.startswith(_IDLE)]
      game.step(rng.choice(busy))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_plans_are_as_short_as_those_of_blind_search(seed):
  task = household_worlds.generate(seed, split="valid_unseen", size="tiny")
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect="move"
  )
  rng = random.Random(seed)
  for _ in range(rng.randrange(12)):
    busy = [c for c in game.admissible_commands if not c.startswith(_IDLE)]
    game.step(rng.choice(busy))
  plan = game.plan()
  assert _wins(game, plan)
  if 1 < len(plan) <= 7:
    assert _shortest_by_search(game, len(plan) - 1) is None
