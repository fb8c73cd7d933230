"""The adapter of other packages' games, with a game of our own behind it."""

import math
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from steppo_jax import types
from steppo_jax.envs import base, guides, seeds
from steppo_jax.envs.text_worlds import adapter, minigrid, scienceworld

NAMES = (
  "textworld_express", "scienceworld", "textarena", "reasoning_gym", "minigrid",
)  # fmt: skip
TASKS = seeds.SeedTasks("told")


class Told(adapter.TextWorld):
  """Says what it was told to say, one turn after the other."""

  def __init__(self, turns, **options):
    super().__init__(**options)
    self._turns = list(turns)

  def begin(self, at):
    self.at = at
    self._left = iter(self._turns)
    return next(self._left)

  def play(self, command):
    self.heard = command
    return next(self._left)


def turns(scores, **last):
  made = [adapter.Turn(str(n), score) for n, score in enumerate(scores)]
  return [*made[:-1], made[-1]._replace(**last)]


def played(env):
  outs = [env.reset(TASKS.panel("train", 1)[0], 0)]
  while not (outs[-1].terminated or outs[-1].truncated):
    outs.append(env.step(" go \n"))
  return outs


SCORES = st.lists(
  st.floats(-2, 2) | st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=9
)


@hypothesis.given(SCORES, st.booleans())
def test_rewards_add_up_to_what_the_score_has_grown_by(scores, cut):
  ends = {"truncated": True} if cut else {"over": True}
  outs = played(Told(turns(scores, **ends)))
  inside = [min(max(s, 0.0), 1.0) for s in scores]
  assert outs[0].reward == 0.0
  assert math.isclose(
    sum(o.reward for o in outs), inside[-1] - inside[0], abs_tol=1e-9
  )
  assert [o.info["scores"]["score"] for o in outs] == inside


def test_a_lost_game_pays_back_what_it_paid_and_no_more():
  # As ScienceWorld: 8 of 100 at the start, 17, then -100 for a wrong choice.
  outs = played(Told(turns([0.08, 0.17, -1.0], over=True)))
  assert [o.reward for o in outs] == pytest.approx([0.0, 0.09, -0.17])


def test_a_refused_command_costs_its_penalty_and_moves_no_score():
  refused = adapter.Turn("no", 0.5, invalid=True)
  end = adapter.Turn("end", 0.5, over=True)
  outs = played(
    Told([adapter.Turn("a", 0.5), refused, end], invalid_penalty=0.1)
  )
  assert [o.reward for o in outs] == pytest.approx([0.0, -0.1, 0.0])
  assert [o.info["invalid"] for o in outs] == [False, True, False]


@pytest.mark.parametrize("ends", ["over", "truncated"])
def test_a_game_that_has_ended_is_not_played_on(ends):
  env = Told(turns([0.0, 1.0, 5.0], over=False))
  env._turns[1] = env._turns[1]._replace(**{ends: True})
  with pytest.raises(RuntimeError, match="no game is under way"):
    env.step("too early")
  assert [o.reward for o in played(env)] == [0.0, 1.0]
  with pytest.raises(RuntimeError, match="no game is under way"):
    env.step("too late")
  assert played(env)[0].reward == 0.0
  assert env.heard == "go"


def test_a_game_that_fails_to_start_leaves_none_to_play():
  env = Told(turns([0.0, 0.0]))
  env.reset(TASKS.panel("train", 1)[0], 0)
  env._turns = []
  with pytest.raises(StopIteration):
    env.reset(TASKS.panel("train", 1)[0], 0)
  with pytest.raises(RuntimeError, match="no game is under way"):
    env.step("go")


def test_commands_are_in_one_order_and_states_have_a_name():
  turn = adapter.Turn("seen", 0.0, commands=("b", "a", "b"), state="here")
  env = Told([turn, turn._replace(state=None, commands=())])
  first = env.reset(TASKS.panel("train", 1)[0], 0)
  assert first.info["commands"] == ["a", "b"]
  assert first.info["anchor"] == "here"
  second = env.step("a")
  assert "commands" not in second.info
  assert second.info["anchor"] == "seen"


@hypothesis.given(
  st.integers(0, 2**27 - 1), st.sampled_from(range(len(seeds.SPLITS)))
)
def test_a_seed_says_its_split_and_number(number, split):
  task = TASKS.generate(number, split=seeds.SPLITS[split], size="small")
  place = seeds.place(task.payload["seed"])
  assert place == (split, number, task.payload["seed"])


@pytest.mark.parametrize("name", NAMES)
def test_without_its_package_a_world_names_the_extra(name, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  extra = name.replace("_", "-")
  with pytest.raises(RuntimeError, match=rf"'steppo_jax\[{extra}\]'"):
    base.make(name)


def test_without_java_what_to_install_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(RuntimeError, match="boiling needs Java 8"):
    adapter.package("json", "boiling", java=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_row_a_guide_and_tasks_that_need_no_package(name):
  recipes = base.resolve(name, {"name": name, "invalid_penalty": 0.5}, {})
  task = recipes.tasks.make().panel("valid_unseen", 1)[0]
  assert task == types.Task(
    f"{name}/valid_unseen/0", name, name, {"seed": 2 * 2**27}
  )
  assert guides.get(name).unwrap == "env_step"
  java = {"textworld_express": 4, "scienceworld": 2}
  assert recipes.env.at_once() == java.get(name)


def test_lists_of_science_are_in_one_order():
  text = "A room:\n\ta cup\n\ta bowl\nDoors:\n\tout\n\tin"
  assert scienceworld._ordered(text) == (
    "A room:\n\ta bowl\n\ta cup\nDoors:\n\tin\n\tout"
  )


def test_a_grid_is_told_from_where_the_agent_stands():
  image = np.zeros((7, 7, 3), int)
  image[:, :, 0] = 1
  image[3, 6] = (5, 4, 0)  # It carries a yellow key.
  image[3, 4] = (4, 0, 2)  # A locked red door, two ahead.
  image[1, 5] = (6, 2, 0)  # A blue ball, one ahead and two to the left.
  image[:, 3] = (2, 5, 0)
  env = object.__new__(minigrid.MiniGrid)
  env._names = constants = type(sys)("constants")
  # As MiniGrid 3 numbers them.
  kinds = [
    "unseen",
    "empty",
    "wall",
    "floor",
    "door",
    "key",
    "ball",
    "box",
    "goal",
    "lava",
    "agent",
  ]
  colours = ["red", "green", "blue", "purple", "yellow", "grey"]
  constants.IDX_TO_OBJECT = dict(enumerate(kinds))
  constants.IDX_TO_COLOR = dict(enumerate(colours))
  constants.STATE_TO_IDX = {"open": 0, "closed": 1, "locked": 2}
  assert env._told({"image": image, "mission": "get out"}) == (
    "Mission: get out. You carry a yellow key. You see a locked red door "
    "2 ahead; a blue ball 1 ahead, 2 left; a grey wall 3 ahead."
  )
