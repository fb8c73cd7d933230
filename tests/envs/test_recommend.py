"""Recommendations by semantic ids: one code a step, each right by itself."""

import numpy as np
import pytest

from steppo_jax.envs import base, experts
from steppo_jax.envs.recommend import env as recommend_env
from steppo_jax.envs.recommend import expert as recommend_expert
from steppo_jax.envs.recommend import worlds


def task(number=0, size="small"):
  return worlds.generate(number, split="train", size=size)


def played(answers, **options):
  env = base.make("recommend", **options)
  first = env.reset(task(), 0)
  return first, [env.step(answer) for answer in answers]


def test_the_recommender_is_the_rule_by_hand():
  # Products with a session of item 1 alone: 1 0 -1; item 1 itself is left out.
  vectors = np.array([[0.0, 2.0], [1.0, 0.0], [-1.0, 9.0], [0.5, 0.0]])
  made = worlds.Catalogue(np.zeros((4, 2), int), vectors)
  assert worlds.following(made, [1]) == 3
  # The last item weighs exp(.5 + 4), the one before exp(0): the user is nearly
  # item 0, whose product with item 2 is the largest.
  assert worlds.following(made, [1, 0]) == 2


@pytest.mark.parametrize("size", worlds.SIZES)
def test_targets_are_items_of_the_catalogue_that_were_not_seen(size):
  found = worlds.catalogue(size)
  shape = worlds.SIZES[size]
  assert found.codes.shape == (shape.items, shape.levels)
  items = {
    tuple(worlds.name(k, int(c)) for k, c in enumerate(path))
    for path in found.codes
  }
  assert len(items) == shape.items
  families = set()
  for number in range(20):
    made = task(number, size)
    assert made == task(number, size)
    seen = [tuple(item) for item in made.payload["session"]]
    target = tuple(made.payload["target"])
    assert {*seen, target} <= items
    assert target not in seen
    assert len(seen) == len(set(seen)) == shape.session
    assert made.golden_steps == len(target) == shape.levels
    families.add(made.family)
  assert families == set(worlds.FAMILIES)


def test_each_code_is_paid_by_itself():
  right = task().payload["target"]
  wrong = worlds.name(1, (int(right[1][1:]) + 1) % 6)
  first, steps = played([right[0], f"<think>b9</think> {wrong}", right[2]])
  assert [step.reward for step in steps] == [1, 0, 1]
  assert [step.terminated for step in steps] == [False, False, True]
  assert not steps[-1].info["won"]
  assert steps[-1].info["scores"]["right"] == pytest.approx(2 / 3)
  # What was right is not shown, and no target either.
  assert steps[0].observation == "Level 2 of 3: b"
  assert first.observation.endswith("Level 1 of 3: a")
  assert steps[1].info["anchor"] != first.info["anchor"]


def test_an_answer_that_is_no_code_costs_and_the_episode_goes_on():
  right = task().payload["target"]
  _, steps = played([right[1], "", right[2]], invalid_penalty=0.25)
  assert [step.reward for step in steps] == [-0.25, -0.25, 1]
  assert [step.info["invalid"] for step in steps] == [True, True, False]
  assert steps[0].observation == f"{recommend_env.INVALID} Level 2 of 3: b"


def test_the_expert_wins_and_guesses_are_codes_of_their_level():
  made = task()
  plan = recommend_expert.recommender(made)
  shown = experts.play(made, base.make("recommend"), plan, wins=True)
  assert shown.rewards == [1, 1, 1]
  random = np.random.default_rng(0)
  spoilt = recommend_expert.guess(made, plan, noise=1.0, random=random)
  experts.play(made, base.make("recommend"), spoilt, wins=False)
  assert spoilt != plan
  same = recommend_expert.guess(made, plan, noise=0.0, random=random)
  assert same == plan
