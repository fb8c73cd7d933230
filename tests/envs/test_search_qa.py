"""The environment of multi-hop questions."""

import functools
import json
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax import types
from steppo_jax.envs.questions import env as questions_env
from steppo_jax.envs.questions import worlds as questions_worlds
from steppo_jax.envs.retrieval import fts
from steppo_jax.envs.retrieval import index as retrieval_index

DOCUMENTS = [
  retrieval_index.Document("d1", "Big Fish", "A film directed by Tim Burton."),
  retrieval_index.Document("d2", "Tim Burton", "A director born in Burbank."),
  retrieval_index.Document("d3", "Burbank", "A city in California."),
]
PARAGRAPHS = [list(document) for document in DOCUMENTS]
QUESTION = "Where was the director of Big Fish born?"
PAYLOAD = {
  "question": QUESTION,
  "answers": ["Burbank", "Burbank, California"],
  "paragraphs": PARAGRAPHS,
}
TASK = types.Task("t", "search_qa", "film", PAYLOAD)


def _started(task=TASK, **options):
  env = questions_env.SearchQAEnv(**options)
  env.reset(task, 0)
  return env


def test_two_searches_and_an_answer_win():
  env = questions_env.SearchQAEnv(top=1)
  first = env.reset(TASK, 0)
  assert first.observation.endswith(QUESTION)
  assert (first.reward, first.terminated, first.truncated) == (0, False, False)
  step = env.step("<search>Big Fish</search>")
  assert step.observation == "Big Fish: A film directed by Tim Burton."
  assert (step.reward, step.terminated, step.info["won"]) == (0, False, False)
  step = env.step("<think>him</think><search>Tim Burton director</search>")
  assert step.observation == "Tim Burton: A director born in Burbank."
  step = env.step("<answer>the city of Burbank</answer>")
  # 1 of 3 words (city, of, burbank) and 1 of 1: 2 * 1/3 / (4/3) = 0.5.
  assert step.info["scores"] == {"exact_match": 0.0, "f1": 0.5}
  assert (step.reward, step.terminated, step.info["won"]) == (0, True, False)
  env.reset(TASK, 0)
  step = env.step("answer burbank.")
  assert (step.reward, step.terminated, step.info["won"]) == (1, True, True)


def test_the_reward_can_be_f1():
  step = _started(reward="f1").step("<answer>the city of Burbank</answer>")
  assert (step.reward, step.info["won"]) == (0.5, False)


def test_a_step_runs_four_searches_and_no_more():
  env = _started(top=1)
  four = ["big fish", "burton born", "california", "fish"]
  text = "".join(f"<search>{q}</search>" for q in [*four, "director"])
  step = env.step(text)
  parts = step.observation.split("\n\n")
  assert [part.split(":")[0] for part in parts[:4]] == [
    "Big Fish", "Tim Burton", "Burbank", "Big Fish",
  ]  # fmt: skip
  assert parts[4:] == ["Only the first 4 searches of a step are run."]
  assert not step.info["invalid"]


def test_a_title_that_begins_the_text_is_shown_once():
  own = [["d", "Burbank", "Burbank is a city."]]
  task = types.Task("t", "search_qa", "f", PAYLOAD | {"paragraphs": own})
  step = _started(task).step("<search>burbank</search>")
  assert step.observation == "Burbank is a city."


def test_a_search_shows_the_best_five():
  many = [[f"p{n}", f"Fish {n}", "fish " * n] for n in range(9)]
  task = types.Task("t", "search_qa", "f", PAYLOAD | {"paragraphs": many})
  step = _started(task).step("<search>fish</search>")
  assert len(step.observation.splitlines()) == 5
  step = _started(task, top=2, shown_chars=4).step("<search>fish</search>")
  assert step.observation == "Fish\nFish"


@pytest.mark.parametrize(
  "text",
  [
    "",
    "What is it?",
    "<answer>Burbank</answer><answer>Paris</answer>",
    '<tool_call>{"name": "fly"}</tool_call>',
  ],
)
def test_an_invalid_call_costs_the_penalty_and_nothing_else(text):
  env = _started(invalid_penalty=0.25)
  before = env.anchor()
  step = env.step(text)
  assert step.observation == questions_env.INVALID
  assert (step.reward, step.terminated) == (-0.25, False)
  assert step.info["invalid"]
  assert env.anchor() == before
  step = env.step("<search>nothing like it</search>")
  assert (step.observation, step.reward) == (questions_env.NOTHING_FOUND, 0.0)
  assert not step.info["invalid"]


def test_one_bad_call_among_good_ones_is_paid_once():
  env = _started(invalid_penalty=0.25, top=1)
  step = env.step("<search></search><search>fish</search><search></search>")
  assert step.reward == -0.25
  assert step.observation.split("\n\n") == [
    questions_env.INVALID,
    "Big Fish: A film directed by Tim Burton.",
    questions_env.INVALID,
  ]


def test_a_bad_call_beside_the_answer_is_counted():
  env = _started(invalid_penalty=0.25)
  step = env.step("<search></search><answer>Burbank</answer>")
  assert step.info["won"]
  assert step.info["invalid"]
  assert step.reward == 0.75


def test_strict_calls_forgive_nothing():
  env = _started(strict=True)
  assert env.step("answer Burbank").info["invalid"]
  assert env.step("It is <answer>Burbank</answer>").info["invalid"]
  assert env.step("<answer>Burbank</answer>").info["won"]


def test_the_first_observation_can_show_a_search_for_the_question():
  env = questions_env.SearchQAEnv(search_first=True, top=1)
  first = env.reset(TASK, 0)
  shown, _, task = first.observation.partition("\n\n")
  # It shares "director", "born" and nothing else with the second paragraph.
  assert shown == "Tim Burton: A director born in Burbank."
  assert task.endswith(QUESTION)


def test_anchors_are_what_was_read_in_any_order():
  anchors = []
  for order in (("fish", "california"), ("california", "fish", "fish")):
    env = _started(top=1)
    for query in order:
      anchor = env.step(f"<search>{query}</search>").info["anchor"]
    anchors.append(anchor)
  assert anchors == ["open, read: d1 d3"] * 2


def test_a_corpus_on_disk_serves_tasks_without_paragraphs(tmp_path):
  path = tmp_path / "index"
  fts.build(path, DOCUMENTS)
  payload = {"question": QUESTION, "answers": ["Burbank"]}
  task = types.Task("t", "search_qa", "film", payload)
  env = _started(task, index=path, top=1)
  assert env.step("<search>fish</search>").observation.startswith("Big Fish")
  with pytest.raises(ValueError, match="t brings no paragraphs: set data_dir"):
    _started(task)


@functools.cache
def _panel():
  return [
    questions_worlds.generate(seed, split="valid_unseen", size="small")
    for seed in range(60)
  ]


def _play(agent, steps=5):
  """Return and share of wins of an agent: (task, step number) to a text."""
  env, total, won = questions_env.SearchQAEnv(), 0.0, 0
  for task in _panel():
    env.reset(task, 0)
    for number in range(steps):
      out = env.step(agent(task, number))
      total += out.reward
      if out.terminated:
        break
    won += out.info["won"]
  return total / len(_panel()), won / len(_panel())


def test_agents_score_what_they_should():
  # Those that do nothing, repeat themselves, write control tokens, or answer
  # with all that they were told.
  for agent in (
    lambda task, n: "",
    lambda task, n: "<search>a</search>",
    lambda task, n: "<|im_end|><eos>[INST]</s>",
    lambda task, n: f"<answer>{task.payload['question']}</answer>",
    lambda task, n: "<answer><|endoftext|></answer>",
    lambda task, n: "<answer>yes</answer>",
  ):
    assert _play(agent) == (0.0, 0.0)
  everything = lambda task, n: "<answer>{}</answer>".format(
    " ".join(title for _, title, _ in task.payload["paragraphs"])
  )
  assert _play(everything) == (0.0, 0.0)
  expert = lambda task, n: questions_worlds.expert(task)[n]
  assert _play(expert) == (1.0, 1.0)
  guess = lambda task, n: "<answer>{}</answer>".format(
    random.Random(task.uid).choice(task.payload["paragraphs"])[1]
  )
  # One of 30 paragraphs at best.
  assert _play(guess)[1] < 0.15


@hypothesis.given(
  st.one_of(
    st.text(),
    st.text().map(lambda t: f"<search>{t}</search>"),
    st.text().map(lambda t: f"<answer>{t}</answer>"),
    st.sampled_from(["<|im_end|>", "\ud800", "\x00", "<search>", "é"]).map(
      lambda t: t * 20_000
    ),
  )
)
def test_any_action_is_harmless(text):
  env = _started()
  step = env.step(text)
  json.dumps(step)
  assert step.reward in (0.0, 1.0)
  # Nothing that was written comes back.
  assert "<|" not in step.observation


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ({"top": 0}, "top must be at least 1, got 0"),
    ({"searches": 0}, "searches must be at least 1"),
    ({"reward": "bleu"}, "reward must be one of exact_match, f1, got 'bleu'"),
    ({"invalid_penalty": -1}, "invalid_penalty must be at least 0"),
    ({"shown_chars": 0}, "shown_chars must be at least 1"),
    ({"data_dir": "nowhere"}, "data_dir 'nowhere' is not a folder"),
    ({"index": "nowhere"}, "nowhere is missing"),
  ],
)
def test_options_out_of_range_are_refused(option, message):
  with pytest.raises(ValueError, match=message):
    questions_env.SearchQAEnv(**option)


@pytest.mark.parametrize(
  ("payload", "message"),
  [
    ({"game": {}}, "needs 'question' and 'answers'"),
    (PAYLOAD | {"answers": []}, "a list of answers"),
    (PAYLOAD | {"answers": [1]}, "a list of answers"),
    (PAYLOAD | {"question": None}, "expected a question"),
    (PAYLOAD | {"paragraphs": [["d1", "t"]]}, r"not \[id, title, text\]"),
    (PAYLOAD | {"paragraphs": [["d1", "t", 3]]}, r"not \[id, title, text\]"),
    (PAYLOAD | {"paragraphs": 3}, r"not \[id, title, text\]"),
    (PAYLOAD | {"paragraphs": PARAGRAPHS * 2}, "two documents have the id"),
  ],
)
def test_broken_tasks_are_refused_by_name(payload, message):
  task = types.Task("q7", "search_qa", "film", payload)
  with pytest.raises(ValueError, match=f"task q7: .*{message}"):
    questions_env.SearchQAEnv().reset(task, 0)


def test_a_step_before_a_reset_is_refused():
  with pytest.raises(RuntimeError, match="call reset"):
    questions_env.SearchQAEnv().step("a")
