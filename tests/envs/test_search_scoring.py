"""Exact match and F1 against an implementation written from the description."""

import string

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax.envs.questions import scoring as questions_scoring

# Answer, gold answers, exact match, F1 by hand.
TABLE = [
  ("Tim Burton", ["Tim Burton"], 1.0, 1.0),
  ("tim  burton.", ["Tim Burton"], 1.0, 1.0),
  ("The Beatles", ["Beatles"], 1.0, 1.0),
  ("a cat and an owl", ["cat and owl"], 1.0, 1.0),
  ("theatre", ["atre"], 0.0, 0.0),
  ("U.S.", ["US"], 1.0, 1.0),
  ("rock-and-roll", ["rockandroll"], 1.0, 1.0),
  ("rock-and-roll", ["rock and roll"], 0.0, 0.0),
  # 2 of 3 given words, 2 of 2 gold words: 2 * 2/3 / (5/3) = 0.8.
  ("director Tim Burton", ["Tim Burton"], 0.0, 0.8),
  # 1 of 1 and 1 of 2: 2/3.
  ("Burton", ["Tim Burton"], 0.0, 2 / 3),
  # Words count as often as they occur in both: 1 of 3 and 1 of 1.
  ("no no no", ["no"], 0.0, 0.5),
  ("no no", ["no no"], 1.0, 1.0),
  ("yes", ["no"], 0.0, 0.0),
  ("1,000", ["1000"], 1.0, 1.0),
  ("Galați", ["Galac", "Galaţi", "Galați"], 1.0, 1.0),
  ("Galati", ["Galac", "Galaţi"], 0.0, 0.0),
  ("in Galati", ["Galac", "Galati", "the Galati county"], 0.0, 2 / 3),
  # Curly quotes are not ASCII punctuation: the words differ.
  ("“Yes”", ["Yes"], 0.0, 0.0),
  ("", ["Tim Burton"], 0.0, 0.0),
  ("the", ["a"], 1.0, 1.0),
  ("the", ["a cat"], 0.0, 0.0),
]


def _plain(text):
  """Lower case, then punctuation, then articles, then white space."""
  out = ""
  for letter in text.lower():
    if letter not in string.punctuation:
      out += letter
  words, word = [], ""
  for letter in out + " ":
    if letter.isspace():
      words.append(word)
      word = ""
    else:
      word += letter
  return [w for w in words if w and w not in ("a", "an", "the")]


def _slow(answer, golds):
  matches, best = 0.0, 0.0
  for gold in golds:
    given, wanted = _plain(answer), _plain(gold)
    matches = max(matches, float(given == wanted))
    if not given or not wanted:
      best = max(best, float(given == wanted))
      continue
    left, common = list(wanted), 0
    for word in given:
      if word in left:
        left.remove(word)
        common += 1
    if common:
      p, r = common / len(given), common / len(wanted)
      best = max(best, 2 * p * r / (p + r))
  return matches, best


@pytest.mark.parametrize(("answer", "golds", "match", "f1"), TABLE)
def test_the_table_holds(answer, golds, match, f1):
  assert questions_scoring.exact_match(answer, golds) == match
  assert questions_scoring.f1(answer, golds) == pytest.approx(f1, abs=1e-12)
  assert _slow(answer, golds) == pytest.approx((match, f1), abs=1e-12)


_WORDS = st.lists(
  st.sampled_from(["a", "The", "an", "cat", "Cat.", "dog", "?", "U.S.", "é"])
).map(" ".join)


@hypothesis.given(_WORDS, st.lists(_WORDS, max_size=3))
def test_scores_are_those_of_the_slow_implementation(answer, golds):
  found = (
    questions_scoring.exact_match(answer, golds),
    questions_scoring.f1(answer, golds),
  )
  assert found == pytest.approx(_slow(answer, golds), abs=1e-12)


@hypothesis.given(st.text(), st.lists(st.text(), max_size=3))
def test_a_match_has_f1_one_and_both_stay_in_range(answer, golds):
  match = questions_scoring.exact_match(answer, golds)
  f1 = questions_scoring.f1(answer, golds)
  assert 0.0 <= match <= f1 <= 1.0
