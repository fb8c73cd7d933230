"""BM25 against the formula, written out as a loop over words."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from steppo_jax.envs.retrieval import bm25


def slow_scores(documents, query, k1, b):
  """The formula of the module's docstring, word by word."""
  total = len(documents)
  mean = sum(map(len, documents)) / total if total else 0.0
  out = []
  for document in documents:
    score = 0.0
    for word in query:
      count = document.count(word)
      if count == 0:
        continue
      holders = sum(word in other for other in documents)
      idf = math.log(1 + (total - holders + 0.5) / (holders + 0.5))
      norm = 1 - b + b * len(document) / mean
      score += idf * count * (k1 + 1) / (count + k1 * norm)
    out.append(score)
  return out


_WORDS = st.sampled_from(["a", "b", "c", "d", "e"])
_DOCUMENTS = st.lists(st.lists(_WORDS, max_size=12), max_size=40)


@hypothesis.given(
  _DOCUMENTS,
  st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=6),
  st.floats(0.0, 3.0),
  st.floats(0.0, 1.0),
)
def test_scores_are_those_of_the_formula(documents, query, k1, b):
  index = bm25.Bm25(documents, k1=k1, b=b)
  want = slow_scores(documents, query, k1, b)
  np.testing.assert_allclose(index.scores(query), want, rtol=1e-5, atol=1e-6)


@hypothesis.given(_DOCUMENTS, st.lists(_WORDS, max_size=4), st.integers(1, 9))
def test_a_search_is_the_head_of_the_sorted_scores(documents, query, top):
  index = bm25.Bm25(documents, k1=1.2, b=0.75)
  scores = index.scores(query)
  order = sorted(range(len(documents)), key=lambda i: (-scores[i], i))
  want = [i for i in order if scores[i] > 0][:top]
  ids, found = index.search(query, top)
  assert ids.tolist() == want
  np.testing.assert_array_equal(found, scores[want])


def test_a_case_by_hand():
  index = bm25.Bm25([["red", "lamp"], ["red"], ["blue"]], k1=1.0, b=0.0)
  # N=3; lamp: n=1, idf ln(1 + 2.5/1.5); f=1, so the gain is 2/2 = 1.
  ids, scores = index.search(["lamp", "unknown"], 5)
  assert ids.tolist() == [0]
  np.testing.assert_allclose(scores, [math.log(1 + 2.5 / 1.5)], rtol=1e-6)
  # red: n=2, idf ln(1 + 1.5/2.5), equal in both: the lower number first.
  assert index.search(["red"], 5)[0].tolist() == [0, 1]
  assert index.search(["red"], 1)[0].tolist() == [0]


def test_a_repeated_word_counts_as_often_as_it_is_repeated():
  index = bm25.Bm25([["a", "b"], ["a"], ["c"]] * 20, k1=1.2, b=0.75)
  once, twice = index.scores(["a", "b"]), index.scores(["a", "b", "a", "b"])
  np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


@pytest.mark.parametrize("documents", [[], [[]], [[], [], []]])
def test_an_index_without_words_finds_nothing(documents):
  index = bm25.Bm25(documents, k1=1.2, b=0.75)
  assert len(index) == len(documents)
  assert index.search(["a"], 3)[0].tolist() == []


def test_an_empty_query_finds_nothing():
  index = bm25.Bm25([["a"]] * 9, k1=1.2, b=0.75)
  assert index.search([], 3)[0].tolist() == []
  assert index.search(["unknown"], 3)[0].tolist() == []


def test_words_are_folded_and_cut_at_punctuation():
  assert bm25.words('Ünder-lamp, 28" X\n28') == [
    "ünder",
    "lamp",
    "28",
    "x",
    "28",
  ]
  assert bm25.words("!?") == []


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"k1": -0.1, "b": 0.5}, "k1 must be at least 0"),
    ({"k1": float("nan"), "b": 0.5}, "k1 must be at least 0"),
    ({"k1": 1.0, "b": 1.5}, r"b must be in \[0, 1\]"),
  ],
)
def test_constants_out_of_range_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    bm25.Bm25([["a"]], **arguments)


def test_text_in_place_of_words_is_refused():
  with pytest.raises(ValueError, match="document 1 is a string"):
    bm25.Bm25([["a"], "red lamp"], k1=1.2, b=0.75)
  index = bm25.Bm25([["a"]], k1=1.2, b=0.75)
  with pytest.raises(ValueError, match="query is a string"):
    index.search("red lamp", 3)
  with pytest.raises(ValueError, match="top must be at least 1"):
    index.search(["a"], 0)
