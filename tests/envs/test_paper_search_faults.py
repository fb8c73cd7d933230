"""Bad actions, tasks, options and states of paper search."""

import concurrent.futures
import json
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax import types
from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.papers import worlds as papers_worlds

PAYLOAD = {
  "question": "Which papers use attention for parsing?",
  "answers": ["a", "b"],
  "papers": [
    ["a", "Sparse attention for parsing", ""],
    ["b", "Lumira notes", ""],
    ["c", "Robust attention for parsing", ""],
  ],
  "citations": [["c", "a"], ["c", "b"]],
}
TASK = types.Task("t", "paper_search", "expand", PAYLOAD)


def _changed(**changes):
  return types.Task("t", "paper_search", "expand", PAYLOAD | changes)


@hypothesis.given(
  st.one_of(
    st.text(),
    st.text().map(lambda t: f"<search>{t}</search>"),
    st.text().map(lambda t: f"<expand>{t}</expand>"),
    st.sampled_from(["<|im_end|>", "\ud800", "\x00", "<expand>", "é"]).map(
      lambda t: f"<expand>{t * 20_000}</expand>"
    ),
  )
)
def test_any_action_is_harmless(text):
  env = papers_env.PaperSearchEnv()
  env.reset(TASK, 0)
  env.step("<search>parsing</search>")
  step = env.step(text)
  json.dumps(step)
  assert "<|" not in step.observation
  assert -2.5 <= step.reward <= 3.0


_ID = st.one_of(st.sampled_from(["a", "b", "c", "zz"]), st.integers())
_ROW = st.lists(_ID, max_size=3)


@hypothesis.given(
  st.lists(_ROW, max_size=5),
  st.lists(_ROW, max_size=5),
  st.lists(_ROW, max_size=3),
)
def test_broken_libraries_are_refused_and_edges_to_nowhere_left_out(
  papers, citations, hidden
):
  task = _changed(papers=papers, citations=citations, hidden=hidden)
  env = papers_env.PaperSearchEnv()
  try:
    env.reset(task, 0)
  except ValueError as error:
    message = str(error)
  else:
    message = None
    env.step("<search>a b c</search><expand>a</expand><expand>b</expand>")
  assert message is None or message.startswith("task t: ")


def test_edges_to_nowhere_are_counted():
  library = papers_library.from_payload(
    PAYLOAD | {"citations": [["a", "zz"], ["zz", "a"], ["a", "a"], ["a", "b"]]}
  )
  assert library.dropped == 3
  assert [paper.id for paper in library.expand("a")] == ["b"]
  assert library.expand("c") == []
  with pytest.raises(KeyError):
    library.expand("zz")


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ({"top": 0}, "top must be at least 1, got 0"),
    ({"calls": 0}, "calls must be at least 1"),
    ({"best": 0}, "best must be at least 1"),
    ({"shown": 0}, "shown must be at least 1"),
    ({"refusal_penalty": -1}, "refusal_penalty must be at least 0"),
    ({"invalid_penalty": math.nan}, "invalid_penalty must be at least 0"),
    ({"won_recall": 0}, r"won_recall must be in \(0, 1\], got 0"),
    ({"keep_from": math.nan}, "keep_from must be a number"),
    ({"data_dir": "nowhere"}, "data_dir 'nowhere' is not a folder"),
    ({"service": "nowhere"}, "service must be http://HOST:PORT"),
  ],
)
def test_options_out_of_range_are_refused(option, message):
  with pytest.raises(ValueError, match=message):
    papers_env.PaperSearchEnv(**option)


@pytest.mark.parametrize(
  ("task", "message"),
  [
    (types.Task("t", "paper_search", "f", {}), "needs 'question'"),
    (_changed(answers=[]), "expected a question and its answers"),
    (_changed(answers=3), "needs 'question' and 'answers'"),
    (_changed(question=3), "expected a question"),
    (_changed(relevance=[1]), "needs 'question' and 'answers'"),
    (_changed(papers=PAYLOAD["papers"] * 2), "two documents have the id 'a'"),
  ],
)
def test_broken_tasks_are_refused_by_name(task, message):
  with pytest.raises(ValueError, match=f"task t: .*{message}"):
    papers_env.PaperSearchEnv().reset(task, 0)


def test_a_task_without_papers_and_a_step_before_a_reset_are_refused():
  env = papers_env.PaperSearchEnv()
  bare = {k: PAYLOAD[k] for k in ("question", "answers")}
  with pytest.raises(ValueError, match="set data_dir or service"):
    env.reset(types.Task("t", "paper_search", "f", bare), 0)
  with pytest.raises(RuntimeError, match="call reset"):
    env.step("a")


def _play(number):
  env, log = papers_env.PaperSearchEnv(), []
  task = papers_worlds.generate(number % 4, split="train", size="small")
  for _ in range(5):
    log.append(env.reset(task, 0))
    log += [env.step(action) for action in papers_worlds.expert(task)]
  return log


def test_episodes_in_many_threads_are_those_of_one_thread():
  alone = [_play(number) for number in range(16)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(_play, range(16))) == alone
