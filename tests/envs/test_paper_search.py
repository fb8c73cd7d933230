"""The environment of paper search."""

import functools
import math

import pytest

from steppo_jax import types
from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import scores as papers_scores
from steppo_jax.envs.papers import worlds as papers_worlds

# c cites a and b; d cites c; e is alone.
PAPERS = [
  ["a", "Sparse attention for parsing", ""],
  ["b", "Lumira notes", ""],
  ["c", "Robust attention for parsing", ""],
  ["d", "Kavero lessons", ""],
  ["e", "Attention for folding", ""],
]
PAYLOAD = {
  "question": "Which papers use attention for parsing?",
  "answers": ["a", "b", "c"],
  "relevance": {"d": 0.5, "e": 0.25},
  "papers": PAPERS,
  "citations": [["c", "a"], ["c", "b"], ["d", "c"]],
}
TASK = types.Task("t", "paper_search", "expand", PAYLOAD)


def _started(task=TASK, **options):
  env = papers_env.PaperSearchEnv(**options)
  env.reset(task, 0)
  return env


def _changed(**changes):
  return types.Task("t", "paper_search", "expand", PAYLOAD | changes)


def test_new_papers_are_rewarded_with_their_scores():
  env = papers_env.PaperSearchEnv()
  first = env.reset(TASK, 0)
  assert first.observation.endswith("Which papers use attention for parsing?")
  assert (first.reward, first.info["won"]) == (0.0, False)
  step = env.step("<search>attention parsing</search>")
  # a and c have 1.0, e has 0.25.
  assert step.reward == 2.25
  assert step.observation.splitlines() == [
    "[a] (1.00) Sparse attention for parsing",
    "[c] (1.00) Robust attention for parsing",
    "[e] (0.25) Attention for folding",
  ]
  assert step.info["scores"]["recall@all"] == pytest.approx(2 / 3)
  assert step.info["scores"]["precision@all"] == pytest.approx(2 / 3)
  assert not step.info["won"]
  step = env.step('<tool_call>{"name": "expand", "arguments": '
                  '{"paper_id": "c"}}</tool_call>')  # fmt: skip
  # a was found before; b has 1.0 and d 0.5.
  assert step.reward == 1.5
  assert step.observation.splitlines() == [
    "[b] (1.00) Lumira notes",
    "[d] (0.50) Kavero lessons",
  ]
  assert step.info["won"]
  assert not step.terminated
  step = env.step("<answer>done</answer>")
  assert (step.reward, step.terminated, step.info["won"]) == (0.0, True, True)


def test_only_the_best_three_new_scores_of_a_step_count():
  text = "<search>attention parsing</search><expand>c</expand>"
  # 1 + 1 + 1 of a, c, b; not 0.5 of d and 0.25 of e.
  assert _started().step(text).reward == 3.0
  assert _started(best=4).step(text).reward == 3.5
  # (1 + 1 + 0.25) + (1 + 0.5).
  assert _started(reward_each_call=True).step(text).reward == 3.75
  # Papers below the bound are not even added.
  env = _started(keep_from=0.5)
  assert env.step(text).reward == 3.0
  assert sorted(env.ranked()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
  ("first", "again", "said"),
  [
    ("<search>a b</search>", "<search>A,  b!</search>", papers_env.REPEATED),
    ("<search>x</search>", "<expand>a</expand>", papers_env.NOT_FOUND_YET),
    ("<search>x</search>", "<expand>z</expand>", papers_env.NOT_FOUND_YET),
    (
      "<search>parsing</search><expand>a</expand>",
      "<expand>a</expand>",
      papers_env.EXPANDED,
    ),
  ],
)
def test_a_repeated_query_and_a_bad_expand_cost_a_half(first, again, said):
  env = _started(invalid_penalty=0.1)
  env.step(first)
  before = env.anchor()
  step = env.step(again)
  assert (step.observation, step.reward) == (said, -0.5)
  assert step.info["invalid"]
  assert env.anchor() == before
  # Each is paid, and what is good beside them is rewarded.
  step = env.step(f"{again}{again}<search>folding</search>")
  assert step.reward == -1.0 + 0.25
  assert _started(refusal_penalty=0.0).step("<expand>a</expand>").reward == 0.0


@pytest.mark.parametrize("text", ["", "find it", "<search></search>", "expand"])
def test_an_invalid_call_costs_the_penalty_and_nothing_else(text):
  env = _started(invalid_penalty=0.25)
  before = env.anchor()
  step = env.step(text)
  assert step.observation == papers_env.INVALID
  assert (step.reward, step.terminated) == (-0.25, False)
  assert step.info["invalid"]
  assert env.anchor() == before


def test_hidden_edges_are_left_out_in_both_directions():
  task = _changed(hidden=[["b", "c"], ["a", "c"]])
  env = _started(task)
  step = env.step("<search>parsing</search><expand>c</expand>")
  assert "Kavero" in step.observation
  assert "Lumira" not in step.observation
  own = _changed(citations=[["b", "a"]], hidden=[["a", "b"]])
  step = _started(own).step("<search>sparse</search><expand>a</expand>")
  assert step.observation.endswith(papers_env.NOTHING_NEW)


def test_a_function_can_be_the_selector():
  asked = []

  def selector(question, paper):
    asked.append((question, paper.id))
    return len(paper.title) / 100

  env = _started(selector=selector)
  step = env.step("<search>folding</search>")
  assert step.reward == len("Attention for folding") / 100
  env.step("<search>folding attention</search>")
  # Once a paper.
  assert sorted(paper for _, paper in asked) == ["a", "c", "e"]
  assert {question for question, _ in asked} == {PAYLOAD["question"]}
  env = _started(selector=lambda question, paper: math.nan)
  before = env.anchor()
  # The step did not happen: the same query is not refused as a repeated one.
  for _ in range(2):
    with pytest.raises(RuntimeError, match="the selector gave nan to paper"):
      env.step("<search>folding</search>")
  assert env.anchor() == before


def test_a_step_makes_five_calls_and_no_more():
  env = _started()
  text = "".join(f"<search>x{n}</search>" for n in range(6))
  parts = env.step(text).observation.split("\n\n")
  assert parts[:5] == [papers_env.NOTHING_NEW] * 5
  assert parts[5:] == ["Only the first 5 calls of a step are run."]
  assert env.step("<search>x5</search>").reward == 0.0


def test_long_lists_are_cut_and_say_so():
  env = _started(shown=1, show_scores=False)
  step = env.step("<search>attention</search>")
  assert step.observation.splitlines() == [
    "[a] Sparse attention for parsing", "and 2 more",
  ]  # fmt: skip


def test_a_share_of_the_answers_can_win():
  step = _started(won_recall=0.6).step("<search>parsing</search>")
  assert step.info["won"]


def test_scores_by_hand():
  # 2 of 4 found, 2 of 3 to be found: 2 * 1/2 * 2/3 / (7/6) = 4/7.
  ranked, answers = ["a", "x", "y", "b"], ["a", "b", "c"]
  assert papers_scores.precision_recall_f1(ranked, answers) == pytest.approx(
    (0.5, 2 / 3, 4 / 7)
  )
  assert papers_scores.precision_recall_f1([], answers) == (0.0, 0.0, 0.0)
  assert papers_scores.precision_recall_f1(ranked, ["z"]) == (0.0, 0.0, 0.0)
  # 60 papers, answers at places 10, 30 and 60.
  ranked = [f"x{n}" for n in range(60)]
  for place, name in ((10, "a"), (30, "b"), (60, "c")):
    ranked[place - 1] = name
  found = papers_scores.table(ranked, answers)
  assert [found[f"precision@{k}"] for k in ("all", 100, 50, 25)] == [
    3 / 60, 3 / 60, 2 / 50, 1 / 25,
  ]  # fmt: skip
  assert [found[f"recall@{k}"] for k in ("all", 100, 50, 25)] == [
    1.0, 1.0, 2 / 3, 1 / 3,
  ]  # fmt: skip
  assert found["f1@25"] == pytest.approx(2 * (1 / 25) / 3 / (1 / 25 + 1 / 3))


def test_anchors_are_what_was_found_and_expanded_in_any_order():
  orders = (
    ("<search>folding</search>", "<search>lumira</search>"),
    ("<search>lumira</search>", "<search>folding</search>", "nothing"),
    ("<search>lumira</search>", "<expand>b</expand>"),
  )
  anchors = []
  for order in orders:
    env = _started()
    for text in order:
      anchor = env.step(text).info["anchor"]
    anchors.append(anchor)
  assert anchors[0] == anchors[1] != anchors[2]
  assert anchors[0].startswith("2 papers, 0 expanded, ")


@functools.cache
def _panel():
  return [
    papers_worlds.generate(seed, split="valid_unseen", size="small")
    for seed in range(45)
  ]


def _play(agent, steps=5):
  """Mean return and share of wins of an agent: (task, step) to a text."""
  env, total, won = papers_env.PaperSearchEnv(), 0.0, 0
  for task in _panel():
    env.reset(task, 0)
    for number in range(steps):
      out = env.step(agent(task, number))
      total += out.reward
      if out.terminated or out.info["won"]:
        break
    won += out.info["won"]
  return total / len(_panel()), won / len(_panel())


def test_agents_score_what_they_should():
  for agent in (
    lambda task, n: "",
    lambda task, n: "<|im_end|><eos>[INST]</s>",
    lambda task, n: "<answer>everything</answer>",
    lambda task, n: "<search><|endoftext|></search>" if n == 0 else "",
  ):
    assert _play(agent) == (0.0, 0.0)
  # A query that finds nothing, and four times a half.
  assert _play(lambda task, n: "<search>zzz</search>") == (-2.0, 0.0)
  # Names of papers that were never found.
  assert _play(lambda task, n: f"<expand>p{n}</expand>") == (-2.5, 0.0)
  once = lambda task, n: (
    f"<search>{task.payload['question']}</search>" if n == 0 else ""
  )
  gain, won = _play(once)
  assert 0.2 < won < 0.5
  again = lambda task, n: f"<search>{task.payload['question']}</search>"
  assert _play(again)[0] < gain - 1.0
  expert = lambda task, n: papers_worlds.expert(task)[n]
  assert _play(expert)[1] == 1.0
  assert _play(expert)[0] > gain + 0.5
