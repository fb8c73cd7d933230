"""Text comparison for the scores of a purchase, without outside packages.

The scores must not depend on what is installed, so the fuzzy measure is written
out here. It gives the whole percentages of `token_set_ratio` in thefuzz 0.22.
"""

import functools
import re
from typing import Any

# The fuzzy measure never sees these characters, whatever stands beside them.
_UPPER_HALF = {code: None for code in range(128, 256)}
_NOT_WORD = re.compile(r"[\W_]+")
# Sorted: of several colours in a text, the first of this list is its colour.
COLOURS = (
  *("beige", "black", "blue", "brown", "burgundy", "camel", "charcoal"),
  *("cream", "dark", "gold", "gray", "green", "grey", "ivory", "khaki"),
  *("light", "navy", "orange", "pink", "purple", "red", "silver", "tan"),
  *("taupe", "teal", "white", "wine", "yellow"),
)


def fold(value: Any) -> str:
  """Lower case, white space folded to single blanks; "" for None."""
  return "" if value is None else " ".join(str(value).lower().split())


def colour(text: str) -> str:
  """The colour that a text holds, the whole text if it holds none.

  A colour is found inside of words too: "2005black" is "black", and what
  "hundred" holds is "red".
  """
  text = fold(text)
  return next((name for name in COLOURS if name in text), text)


@functools.lru_cache(maxsize=1 << 16)
def token_set_ratio(left: str, right: str) -> int:
  """How much two texts agree in their sets of words, in whole percent.

  Let s be the common words, l and r those of one text alone, each sorted and
  joined by blanks. The ratio of two strings with n and m characters is
  200 L / (n + m), where L is the length of their longest common subsequence.

      100 if s is not empty, and l or r is; otherwise the largest ratio
      between s, s + l and s + r; 0 if a text has no words

  Before that, characters from U+0080 to U+00FF are dropped, what is neither
  letter nor digit parts words, and everything is in lower case.

  Args:
    left: A text.
    right: Another; the order of the two does not matter.

  Source: SeatGeek's thefuzz, `fuzz.token_set_ratio`.
  """
  lefts, rights = _words(left), _words(right)
  if not lefts or not rights:
    return 0
  common = lefts & rights
  if common and (lefts <= rights or rights <= lefts):
    return 100
  base = " ".join(sorted(common))
  a = " ".join(filter(None, [base, *sorted(lefts - common)]))
  b = " ".join(filter(None, [base, *sorted(rights - common)]))
  best = _ratio(a, b)
  if common:
    # s is the beginning of both.
    shorter = min(len(a), len(b))
    best = max(best, 200.0 * len(base) / (len(base) + shorter))
  return round(best)


def _words(text):
  return set(_NOT_WORD.sub(" ", text.translate(_UPPER_HALF)).lower().split())


def _ratio(a, b):
  return 200.0 * _common_length(a, b) / (len(a) + len(b))


def _common_length(a, b):
  """Length of the longest common subsequence, a bit per character of `a`.

  Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
  """
  places = {}
  for k, char in enumerate(a):
    places[char] = places.get(char, 0) | 1 << k
  full = (1 << len(a)) - 1
  row = full
  for char in b:
    match = row & places.get(char, 0)
    row = (row + match | row - match) & full
  return len(a) - row.bit_count()
