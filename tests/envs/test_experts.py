"""Experts win every generated task by what the environment takes."""

import itertools

import numpy as np
import pytest

from steppo_jax.datasets import demonstrations
from steppo_jax.datasets import options as datasets_options
from steppo_jax.envs import base, experts
from steppo_jax.envs.webshop import expert
from steppo_jax.tokenizer import loading

TOKENIZER = loading.load("worlds")
SHOPS = ("webshop", "search_qa", "paper_search")
SHOWN = {"search_qa": ("top=2",), "paper_search": ("top=5", "shown=5")}


def made(env, size="tiny", **changes):
  return datasets_options.Demonstrations(
    **dict(split="train", sizes=(size,), num_episodes=25, seed=3, env=env)
    | changes
  )


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
@pytest.mark.parametrize("env", SHOPS)
def test_demonstrations_come_back_and_win_when_played(tmp_path, env, size):
  # Short lists leave answers of larger libraries out.
  shown = () if size == "medium" else SHOWN.get(env, ())
  options = made(env, size, options=shown)
  demonstrations.prepare(tmp_path, options)
  episodes = demonstrations.load(tmp_path, options)
  played = base.resolve(
    env, {"size": size}, base.parse_options(options.options)
  ).env.make()
  tasks = {options.task(i).uid: options.task(i) for i in range(25)}
  assert {episode["uid"] for episode in episodes} == set(tasks)
  for episode in episodes:
    steps, task = episode["steps"], tasks[episode["uid"]]
    assert episode["task"] in steps[0]["observation"]
    out = played.reset(task, 0)
    for step, after in itertools.pairwise(steps):
      assert out.observation == step["observation"]
      out = played.step(step["action"])
      assert not out.info["invalid"]
      assert out.reward == pytest.approx(step["reward"])
      assert out.observation == after["observation"]
    assert out.info["won"]
    assert steps[-1]["action"] == ""


@pytest.mark.parametrize("split", ["train", "valid_unseen"])
@pytest.mark.parametrize("env", SHOPS)
def test_a_tiny_world_is_short_and_hardly_spelt(env, split):
  options = made(env, split=split, options=SHOWN.get(env, ()))
  own = base.parse_options(options.options)
  for index in range(25):
    task = options.task(index)
    played = experts.play(
      task,
      demonstrations.make_env(env, own),
      experts.get(env).plan(task),
      wins=True,
    )
    for text in (*played.observations, *played.actions):
      ids = TOKENIZER.encode(text)
      spelt = [i for i in ids if TOKENIZER._processor.is_byte(int(i))]
      # Of large prices.
      assert set(TOKENIZER.decode(spelt)) <= set("0123456789"), text
      assert len(ids) < 80


def test_a_shopper_searches_in_a_few_words():
  options = made("webshop")
  words = []
  for index in range(25):
    search = expert.shopper(options.task(index))[0]
    words.append(len(search.removeprefix("search[").split()))
  assert np.mean(words) < 8


def test_a_plan_that_does_not_win_is_refused():
  options = made("webshop")
  task = options.task(0)
  env = demonstrations.make_env("webshop", {})
  with pytest.raises(ValueError, match="plan does not win"):
    experts.play(task, env, ["search[nothing]"], wins=True)
  with pytest.raises(ValueError, match="'dance' was refused"):
    experts.play(task, env, ["dance"], wins=False)


@pytest.mark.slow
def test_haste_costs_the_share_of_episodes_that_was_asked_for(tmp_path):
  options = made("search_qa", num_episodes=400, noise=0.5)
  demonstrations.prepare(tmp_path, options)
  episodes = list(demonstrations.load(tmp_path, options))
  won = [sum(s["reward"] for s in e["steps"]) == 1.0 for e in episodes]
  # A name that is read after the second search may be the answer.
  assert 0.2 < np.mean(won) < 0.55
  searches = [len(e["steps"]) - 2 for e in episodes]
  assert set(searches) == {1, 2}
  assert np.mean(np.array(searches) == 1) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"env": "alfworld"}, "demonstrations of household, .*not of 'alfworld'"),
    ({"env": "webshop", "detours": 1.0}, "the household's expert"),
    ({"env": "webshop", "noise": 0.1}, "expert of webshop makes no mistakes"),
    ({"env": "webshop", "sizes": ("huge",)}, "sizes must be among"),
    ({"env": "household", "options": ("a=1",)}, "shown as they are"),
    ({"env": "webshop", "options": ("reward",)}, "expected name=value"),
  ],
)
def test_wrong_options_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    made(**{"env": "webshop"} | change)


def test_an_option_that_the_environment_lacks_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"no option 'tops', did you mean 'top'"):
    demonstrations.prepare(tmp_path, made("search_qa", options=("tops=2",)))
