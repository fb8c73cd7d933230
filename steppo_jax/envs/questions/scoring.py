"""Scores answers to questions: exact match and F1 as SQuAD's script has them.

Source: Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822.
"""

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
  """Lower case, no ASCII punctuation, no articles, single spaces."""
  text = text.lower().translate(_NO_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
  """1.0 if the answer is one of the gold answers after `normalise`, else 0.0.

  Args:
    answer: What was answered.
    golds: The answer and its aliases.
  """
  given = normalise(answer)
  return float(any(given == normalise(gold) for gold in golds))


def f1(answer: str, golds: Sequence[str]) -> float:
  """Best F1 over the gold answers, of the words after `normalise`, in [0, 1].

      p = common / |answer|    r = common / |gold|    F1 = 2 p r / (p + r)

  Words are counted as often as they occur in both. If nothing is left of one
  of the two, F1 is 1.0 if nothing is left of either, and 0.0 otherwise.

  Args:
    answer: What was answered.
    golds: The answer and its aliases; 0.0 without any.
  """
  given = normalise(answer).split()
  return max((_f1(given, normalise(g).split()) for g in golds), default=0.0)


def _f1(given, gold) -> float:
  if not given or not gold:
    return float(given == gold)
  counts = collections.Counter(given) & collections.Counter(gold)
  common = sum(counts.values())
  if not common:
    return 0.0
  precision, recall = common / len(given), common / len(gold)
  return 2 * precision * recall / (precision + recall)
