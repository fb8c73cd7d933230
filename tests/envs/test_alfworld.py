"""Loading real games: what is wrong with a file is said by name."""

import json
import lzma

import pytest

from steppo_jax.envs.household import alfworld
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import pddl as household_pddl

_PROBLEM = """
(define (problem plan_trial)  ; a comment with (parentheses
 (:domain alfred)
 (:objects agent1 - agent Apple - object)
 (:init
  (= (total-cost) 0)
  (receptacleType CounterTop_bar_a CounterTopType)
  (receptacleType Sink_bar_b_bar_SinkBasin SinkBasinType)
  (canContain CounterTopType AppleType)
  (canContain SinkBasinType AppleType)
  (objectType Apple_bar_b AppleType)
  (objectType Apple_bar_a AppleType)
  (pickupable Apple_bar_a) (pickupable Apple_bar_b)
  (cleanable Apple_bar_a)
  (receptacleAtLocation CounterTop_bar_a loc_bar_2)
  (receptacleAtLocation Sink_bar_b_bar_SinkBasin loc_bar_1)
  (inReceptacle Apple_bar_a CounterTop_bar_a)
  (inReceptacle Apple_bar_b CounterTop_bar_a)
  (objectAtLocation Apple_bar_a loc_bar_2)
  (objectAtLocation Apple_bar_b loc_bar_2)
  (atLocation agent1 loc_bar_3))
 (:goal (and (exists (?r - receptacle) (exists (?o - object) (and
   (cleanable ?o) (objectType ?o AppleType) (receptacleType ?r SinkBasinType)
   (isClean ?o) (inReceptacle ?o ?r)))))))
"""


def _record(**changes):
  game = household_pddl.parse_problem(_PROBLEM)
  record = {
    "id": "train/clean-Apple/trial_1",
    "family": "pick_clean_then_place_in_recep",
    "task": "put a clean apple in sinkbasin.",
    "plan": ["a", "b", "c", "d", "e", "f"],
    "game": game,
  }
  return record | changes


def _pack(folder, *lines, split="train"):
  path = folder / f"{split}.compact.jsonl.xz"
  with lzma.open(path, "wt", encoding="utf-8") as out:
    out.write("\n".join(lines))
  return path


def test_a_pddl_problem_reads_as_its_compact_form():
  assert household_pddl.parse_problem(_PROBLEM) == {
    "R": [["countertop 1", "countertop", 1, 0],
          ["sinkbasin 1", "sinkbasin", 0, 0]],
    # The first id gets the highest number.
    "O": [["apple 2", "apple", 3, [0], [1]], ["apple 1", "apple", 1, [0], [1]]],
    "C": {"countertop": ["apple"], "sinkbasin": ["apple"]},
    "A": 2,
    "G": [
      ["cleanable", "?o"],
      ["objecttype", "?o", "appletype"],
      ["receptacletype", "?r", "sinkbasintype"],
      ["isclean", "?o"],
      ["inreceptacle", "?o", "?r"],
    ],
  }  # fmt: skip


def test_variables_of_separate_quantifiers_are_kept_apart():
  goal = [
    "and",
    ["exists", ["?o", "-", "object"], ["isclean", "?o"]],
    ["exists", ["?o", "-", "object", "?a", "-", "agent"],
     ["holds", "?a", "?o"]],
  ]  # fmt: skip
  assert household_pddl.flatten_goal(goal) == [
    ["isclean", "?o"],
    ["holds", "?a", "?o2"],
  ]


def test_a_receptacle_without_a_location_counts_but_is_not_seen():
  nowhere = _PROBLEM.replace(
    "(cleanable Apple_bar_a)",
    "(cleanable Apple_bar_a) (receptacleType CounterTop_bar_0 CounterTopType)",
  )
  game = household.Game.from_pddl(nowhere, "put it.", dialect="move")
  # Its id is first, so it is countertop 2, and countertop 1 keeps its name.
  assert "you see a countertop 1, and a sinkbasin 1." in game.reset()
  assert game.step("go to countertop 2") == "Nothing happens."
  assert "go to countertop 2" not in game.admissible_commands
  assert len(game.plan()) == 5


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("(:goal", "(:gaol", r"section \(:goal \.\.\.\) is missing"),
    ("isClean ?o)", "isClean ?o", "1 parentheses are not closed; is the file"),
    ("(pickupable Apple_bar_b)", "(edible Apple_bar_b)", r"fact \(edible"),
    ("(atLocation agent1 loc_bar_3)", "", "0 start locations, expected one"),
    ("(isClean ?o)", "(or (isClean ?o) (isHot ?o))", r"goal uses \(or"),
    ("(isClean ?o)", "(isShiny ?o)", "goal literal .'isshiny', '.o'. is not"),
    ("(define", "(defile", "expected one"),
    ("loc_bar_3))", "loc_bar_3)))", "a closing parenthesis too many|expected"),
    ("(receptacleAtLocation CounterTop_bar_a loc_bar_2)",
     "(receptacleAtLocation CounterTop_bar_a loc_bar_2)"
     "(receptacleAtLocation CounterTop_bar_a loc_bar_1)",
     "a receptacle has two locations"),
  ],
)  # fmt: skip
def test_broken_problems_say_what_is_wrong(old, new, message):
  assert old in _PROBLEM
  with pytest.raises(ValueError, match=message):
    household.Game.from_pddl(
      _PROBLEM.replace(old, new), "put it.", dialect="move"
    )


def test_packed_games_are_loaded_in_order(tmp_path):
  second = _record(id="train/clean-Apple/trial_2", plan=None)
  _pack(tmp_path, json.dumps(_record()), json.dumps(second))
  tasks = alfworld.load_tasks(tmp_path, "train")
  assert [task.uid for task in tasks] == [
    "alfworld/train/clean-Apple/trial_1",
    "alfworld/train/clean-Apple/trial_2",
  ]
  assert [task.golden_steps for task in tasks] == [6, None]
  assert {task.env for task in tasks} == {"household"}
  # Go, take, go, clean, move.
  assert household.golden_steps(tasks[1]) == 5


def test_a_missing_folder_or_split_is_named(tmp_path):
  with pytest.raises(ValueError, match="is not a folder; set data_dir"):
    alfworld.load_tasks(tmp_path / "nowhere", "train")
  _pack(tmp_path, json.dumps(_record()))
  with pytest.raises(ValueError, match="no split 'test'; it has train"):
    alfworld.load_tasks(tmp_path, "test")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{broken", "line 2: "),
    ("[]", "line 2: expected a JSON object"),
    ('{"id": "x"}', "line 2: the key 'family' is missing"),
  ],
)
def test_a_corrupt_record_is_named_by_file_and_line(tmp_path, line, message):
  _pack(tmp_path, json.dumps(_record()), line)
  pattern = rf"train\.compact\.jsonl\.xz, {message}"
  with pytest.raises(ValueError, match=pattern):
    alfworld.load_tasks(tmp_path, "train")


def test_a_corrupt_game_in_a_record_is_named_by_line(tmp_path):
  game = dict(_record()["game"])
  del game["G"]
  _pack(tmp_path, json.dumps(_record(game=game)))
  with pytest.raises(ValueError, match="line 1: compact game: the key 'G'"):
    alfworld.load_tasks(tmp_path, "train")


def test_a_truncated_or_foreign_archive_is_named(tmp_path):
  path = _pack(tmp_path, *[json.dumps(_record())] * 50)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ValueError, match=r"is no whole \.xz file"):
    alfworld.load_tasks(tmp_path, "train")
  path.write_bytes(b"hello")
  with pytest.raises(ValueError, match=r"is no whole \.xz file"):
    alfworld.load_tasks(tmp_path, "train")


@pytest.fixture
def trial(tmp_path):
  folder = tmp_path / "json_2.1.1/valid_seen"
  folder /= "pick_clean_then_place_in_recep-Apple-None-SinkBasin-1/trial_1"
  folder.mkdir(parents=True)
  (folder / "initial_state.pddl").write_text(_PROBLEM)
  params = {
    "object_target": "Apple",
    "parent_target": "SinkBasin",
    "toggle_target": "",
  }
  data = {
    "task_type": "pick_clean_then_place_in_recep",
    "pddl_params": params,
  }
  (folder / "traj_data.json").write_text(json.dumps(data))
  return folder


def test_a_release_folder_is_loaded_from_its_plain_files(tmp_path, trial):
  (task,) = alfworld.load_tasks(tmp_path, "valid_seen")
  assert task.family == "pick_clean_then_place_in_recep"
  assert task.payload["task"] == "put a clean apple in sinkbasin."
  assert task.uid == f"alfworld/valid_seen/{trial.parent.name}/trial_1"
  assert alfworld.load_tasks(tmp_path / "json_2.1.1", "valid_seen") == [task]


def test_the_packed_file_of_a_folder_comes_first(tmp_path, trial):
  packed = {
    "pddl_problem": _PROBLEM,
    "grammar": '{ "rhs": "Your task is to: clean some apple." }',
    "solvable": True,
  }
  (trial / "game.tw-pddl").write_text(json.dumps(packed))
  (task,) = alfworld.load_tasks(tmp_path, "valid_seen")
  assert task.payload["task"] == "clean some apple."
  (trial / "game.tw-pddl").write_text(json.dumps(packed | {"solvable": False}))
  assert alfworld.load_tasks(tmp_path, "valid_seen") == []


def test_tasks_with_slices_or_movable_receptacles_are_left_out(trial, caplog):
  for kind in ("pick_and_place_with_movable_recep-Apple-Bowl", "AppleSliced"):
    other = trial.parent.with_name(kind) / "trial_1"
    other.mkdir(parents=True)
    for path in trial.iterdir():
      (other / path.name).write_bytes(path.read_bytes())
  caplog.set_level("INFO")
  (task,) = alfworld.load_tasks(trial.parents[2], "valid_seen")
  assert "Sliced" not in task.uid
  assert "left out 2 games" in caplog.text


def test_broken_files_of_a_release_are_named(tmp_path, trial):
  (trial / "traj_data.json").write_text("{")
  with pytest.raises(ValueError, match=r"traj_data\.json is not valid JSON"):
    alfworld.load_tasks(tmp_path, "valid_seen")
  (trial / "game.tw-pddl").write_text("{}")
  with pytest.raises(ValueError, match=r"game\.tw-pddl: the key 'grammar'"):
    alfworld.load_tasks(tmp_path, "valid_seen")
  (trial / "game.tw-pddl").unlink()
  (trial / "initial_state.pddl").unlink()
  with pytest.raises(ValueError, match=r"has neither game\.tw-pddl nor"):
    alfworld.load_trial(trial)
  with pytest.raises(ValueError, match="holds no TASK/TRIAL folder"):
    alfworld.load_tasks(tmp_path, "valid_seen")
