"""The rules, sentence by sentence, in a kitchen made by hand."""

import pytest

from steppo_jax.envs.household import env as household


def _game(compact, dialect="move"):
  return household.Game.from_compact(
    compact, "heat some apple and put it in fridge.", dialect=dialect
  )


def test_the_first_observation_lists_the_room_and_the_task(kitchen):
  assert _game(kitchen).reset() == (
    "-= Welcome to TextWorld, ALFRED! =-\n\n"
    "You are in the middle of a room. Looking quickly around you, you see a "
    "cabinet 2, a cabinet 1, a countertop 1, a fridge 1, a microwave 1, and a "
    "sinkbasin 1.\n\n"
    "Your task is to: heat some apple and put it in fridge."
  )


def test_a_whole_game_reads_as_in_the_original(kitchen):
  game = _game(kitchen)
  script = [
    ("look", "You are in the middle of a room. Looking quickly around you, "
     "you see nothing."),
    ("inventory", "You are not carrying anything."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("take apple 2 from fridge 1", "Nothing happens."),
    ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, "
     "you see a apple 2."),
    ("examine apple 2", "Nothing happens."),
    ("take apple 2 from fridge 1", "You pick up the apple 2 from the "
     "fridge 1."),
    ("examine fridge 1", "The fridge 1 is open. In it, you see nothing."),
    ("close fridge 1", "You close the fridge 1."),
    ("move apple 2 to fridge 1", "Nothing happens."),
    # Cooling needs no open door.
    ("cool apple 2 with fridge 1", "You cool the apple 2 using the fridge 1."),
    ("examine apple 2", "This is a cold apple 2."),
    ("inventory", "You are carrying: a apple 2."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is "
     "closed."),
    ("heat apple 2 with microwave 1", "You heat the apple 2 using the "
     "microwave 1."),
    ("examine apple 2", "This is a hot apple 2."),
    ("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you "
     "see nothing."),
    ("clean apple 2 with sinkbasin 1", "You clean the apple 2 using the "
     "sinkbasin 1."),
    ("examine apple 2", "This is a hot and clean apple 2."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, "
     "you see nothing."),
  ]  # fmt: skip
  for command, answer in script:
    assert game.step(command) == answer, command
  assert not game.won
  answer = game.step("move apple 2 to fridge 1")
  assert answer == "You move the apple 2 to the fridge 1."
  assert game.won


def test_receptacles_at_one_location_are_faced_together(kitchen):
  game = _game(kitchen)
  game.step("go to cabinet 1")
  assert game.admissible_commands == [
    "examine cabinet 1",
    "examine cabinet 2",
    "go to countertop 1",
    "go to fridge 1",
    "go to microwave 1",
    "go to sinkbasin 1",
    "help",
    "inventory",
    "look",
    "open cabinet 1",
    "open cabinet 2",
  ]
  game.step("open cabinet 2")
  game.step("take cup 1 from cabinet 2")
  game.step("open cabinet 1")
  facing = "You are facing the cabinet 2, and cabinet 1. Next to it, you see"
  assert game.step("look") == f"{facing} nothing."
  game.step("move cup 1 to cabinet 1")
  # The engine forgets that it lies in the other one now.
  assert game.step("look") == f"{facing} a cup 1."
  game.step("take cup 1 from cabinet 1")
  game.step("move cup 1 to cabinet 2")
  assert game.step("look") == f"{facing} a cup 1."


def test_one_thing_fits_in_the_hand(kitchen):
  game = _game(kitchen)
  game.step("go to countertop 1")
  takes = [c for c in game.admissible_commands if c.startswith("take")]
  # The lamp cannot be taken.
  assert takes == [
    f"take {name} from countertop 1"
    for name in ("apple 1", "fork 1", "knife 1")
  ]
  game.step("take fork 1 from countertop 1")
  assert game.step("take knife 1 from countertop 1") == "Nothing happens."
  assert game.step("inventory") == "You are carrying: a fork 1."
  assert not any(c.startswith("take") for c in game.admissible_commands)
  assert "move fork 1 to countertop 1" in game.admissible_commands


def test_knives_slice_what_lies_here_and_states_add_up(kitchen):
  game = _game(kitchen)
  game.step("go to countertop 1")
  assert game.step("slice apple 1 with knife 1") == "Nothing happens."
  game.step("take fork 1 from countertop 1")
  assert not any(c.startswith("slice") for c in game.admissible_commands)
  game.step("move fork 1 to countertop 1")
  game.step("take knife 1 from countertop 1")
  slices = [c for c in game.admissible_commands if c.startswith("slice")]
  assert slices == ["slice apple 1 with knife 1"]
  answer = game.step("slice apple 1 with knife 1")
  assert answer == "You sliced the apple 1 with the knife 1."
  game.step("move knife 1 to countertop 1")
  game.step("take apple 1 from countertop 1")
  assert game.step("examine apple 1") == "This is a sliced apple 1."
  game.step("go to sinkbasin 1")
  game.step("clean apple 1 with sinkbasin 1")
  assert game.step("examine apple 1") == "This is a clean sliced apple 1."
  game.step("go to fridge 1")
  game.step("cool apple 1 with fridge 1")
  answer = "This is a cool and clean sliced apple 1."
  assert game.step("examine apple 1") == answer


def test_lamps_say_that_they_turn_on_each_time(kitchen):
  game = _game(kitchen)
  assert game.step("use desklamp 1") == "Nothing happens."
  game.step("go to countertop 1")
  for _ in range(2):
    assert game.step("use desklamp 1") == "You turn on the desklamp 1."
  assert "use desklamp 1" in game.admissible_commands


def test_vessels_show_what_was_found_inside_them(kitchen):
  game = _game(kitchen)
  for command in ("go to cabinet 2", "open cabinet 2"):
    game.step(command)
  game.step("take cup 1 from cabinet 2")
  answer = "This is a normal cup 1. In it, you see a fork 1."
  assert game.step("examine cup 1") == answer
  game.step("go to countertop 1")
  game.step("move cup 1 to countertop 1")
  answer = (
    "On the countertop 1, you see a apple 1, a cup 1, a desklamp 1, a fork 1, "
    "and a knife 1."
  )
  assert game.step("examine countertop 1") == answer


@pytest.mark.parametrize(
  "command",
  ["", "Look", "look around", "go to  fridge 1", "GO TO FRIDGE 1",
   "go fridge 1", "go to fridge", "go to window 1", "take apple 1", "use",
   "examine", "put apple 1 in/on fridge 1", "open fridge 1", "\x00"],
)  # fmt: skip
def test_what_is_not_admissible_does_nothing(kitchen, command):
  game = _game(kitchen)
  before = game.save()
  assert command not in game.admissible_commands
  assert game.step(command) == "Nothing happens."
  assert game.save() == before


def test_outer_white_space_is_cut_off(kitchen):
  answer = "You arrive at fridge 1. The fridge 1 is closed."
  assert _game(kitchen).step(" \tgo to fridge 1\n") == answer


def test_every_listed_command_works_and_no_other(kitchen):
  names = [r[0] for r in kitchen["R"]] + [o[0] for o in kitchen["O"]]
  pairs = [(a, b) for a in names for b in names]
  universe = {"look", "inventory", "help"}
  for verb in ("go to", "open", "close", "examine", "use"):
    universe |= {f"{verb} {name}" for name in names}
  for verb, word in (
    ("take", "from"), ("move", "to"), ("heat", "with"), ("cool", "with"),
    ("clean", "with"), ("slice", "with"), ("put", "in/on"),
  ):  # fmt: skip
    universe |= {f"{verb} {a} {word} {b}" for a, b in pairs}
  game = _game(kitchen)
  for command in [*game.plan()[:3], "go to countertop 1", "go to cabinet 2"]:
    game.step(command)
    state, listed = game.save(), game.admissible_commands
    assert listed == sorted(set(listed))
    played = set()
    for other in universe:
      if game.step(other) != "Nothing happens.":
        played.add(other)
      game.restore(state)
    assert played == set(listed)


def test_the_older_dialect_puts_and_arrives_at_locations(kitchen):
  game = _game(kitchen, dialect="put")
  assert "help" not in game.admissible_commands
  assert game.step("help") == "Nothing happens."
  # 6 locations, numbered against their order: location 1 is loc 5.
  assert game.step("go to fridge 1") == (
    "You arrive at loc 5. The fridge 1 is closed."
  )
  game.step("open fridge 1")
  game.step("take apple 2 from fridge 1")
  assert "put apple 2 in/on fridge 1" in game.admissible_commands
  assert game.step("move apple 2 to fridge 1") == "Nothing happens."
  answer = game.step("put apple 2 in/on fridge 1")
  assert answer == "You put the apple 2 in/on the fridge 1."


def test_help_lists_the_commands(kitchen):
  lines = _game(kitchen).step("help").strip().splitlines()
  assert lines[0] == "Available commands:"
  assert len(lines) == 14
  assert lines[7] == (
    "  move (object) to (receptacle):  place an object in or on a receptacle"
  )
