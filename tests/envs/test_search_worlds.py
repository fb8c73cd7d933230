"""Generated questions."""

import json

import pytest
from marks import some

from steppo_jax.envs.questions import env as questions_env
from steppo_jax.envs.questions import worlds as questions_worlds


def _tasks(split, size, count=150):
  return [
    questions_worlds.generate(n, split=split, size=size) for n in range(count)
  ]


def _facts(task):
  """The pair of facts that a question asks for, read from its text."""
  words = task.payload["question"].rstrip("?").split(" of the ")
  second = words[0].split(" is the ")[1]
  return task.family, words[1].split(" of ")[0], second


@pytest.mark.parametrize("size", some("small", slow=questions_worlds.SIZES))
def test_every_question_is_answered_by_two_searches(size):
  env = questions_env.SearchQAEnv()
  for split in questions_worlds.SPLITS:
    for task in _tasks(split, size, 60):
      first = env.reset(task, 0)
      actions = questions_worlds.expert(task)
      steps = [env.step(action) for action in actions]
      assert steps[-1].info["won"], task.uid
      assert len(actions) == task.golden_steps == 3
      # The name to search for next, and the answer, stand in what was read.
      seen = [first.observation] + [step.observation for step in steps]
      for action, text in zip(actions, seen, strict=False):
        assert action.split(">")[1].split("<")[0] in text


@pytest.mark.parametrize("size", some("small", slow=["medium", "full"]))
def test_one_search_for_the_question_seldom_finds_the_second_paragraph(size):
  env = questions_env.SearchQAEnv()
  first = both = 0
  for task in _tasks("train", size):
    env.reset(task, 0)
    step = env.step(f"<search>{task.payload['question']}</search>")
    seen = step.info["anchor"].split()
    first += task.payload["gold_ids"][0] in seen
    both += task.payload["gold_ids"][1] in seen
  assert first > 0.95 * 150
  assert both < 0.1 * 150


@pytest.mark.slow
def test_held_out_pairs_of_facts_are_asked_in_valid_unseen_alone():
  asked = {
    split: {_facts(task) for task in _tasks(split, "small", 600)}
    for split in questions_worlds.SPLITS
  }
  unseen = asked["valid_unseen"]
  assert unseen
  assert all(questions_worlds.is_held_out(*facts) for facts in unseen)
  assert {family for family, _, _ in unseen} == set(questions_worlds.FAMILIES)
  for split in ("train", "valid_seen"):
    assert not any(questions_worlds.is_held_out(*f) for f in asked[split])
  # Each single fact is trained on, as the first and as the second.
  for position in (1, 2):
    trained = {facts[position] for facts in asked["train"]}
    assert {facts[position] for facts in unseen} <= trained


def test_a_question_is_a_function_of_its_arguments():
  task = questions_worlds.generate(5, split="train", size="small")
  assert task == questions_worlds.generate(5, split="train", size="small")
  assert json.loads(json.dumps(task.payload)) == task.payload
  assert task.payload["question"] == (
    "Who is the teacher of the mayor of Vesteam?"
  )
  others = [
    questions_worlds.generate(6, split="train", size="small"),
    questions_worlds.generate(5, split="valid_seen", size="small"),
    questions_worlds.generate(5, split="train", size="tiny"),
  ]
  assert all(other.payload != task.payload for other in others)
  assert len({other.uid for other in [task, *others]}) == 4


def test_sizes_are_numbers_of_paragraphs():
  for size, count in questions_worlds.SIZES.items():
    task = questions_worlds.generate(0, split="train", size=size)
    rows = task.payload["paragraphs"]
    assert len(rows) == count
    assert len({title for _, title, _ in rows}) == count
    assert len({id_ for id_, _, _ in rows}) == count


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": "test"}, "split must be one of train"),
    ({"size": "huge"}, "size must be one of tiny"),
    ({"seed": -1}, "seed must be an integer"),
    ({"seed": 1.5}, "seed must be an integer"),
  ],
)
def test_unknown_arguments_are_refused(options, message):
  arguments = {"seed": 0, "split": "train", "size": "tiny"} | options
  with pytest.raises(ValueError, match=message):
    questions_worlds.generate(arguments.pop("seed"), **arguments)
