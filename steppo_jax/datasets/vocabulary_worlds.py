"""Pieces of the tokenizer for the generated shops, questions and papers.

Made for a small model that must copy names: kinds, attributes, options, methods
and problems are one piece each, with and without a leading space; an invented
name is spelt by its syllables.
"""

from collections.abc import Iterator

from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import worlds as papers_worlds
from steppo_jax.envs.questions import env as questions_env
from steppo_jax.envs.questions import worlds as questions_worlds
from steppo_jax.envs.webshop import pages as webshop_pages
from steppo_jax.envs.webshop import tables as webshop_tables

LARGEST_NUMBER = 60

_TEXT = (
  # The shop.
  *(webshop_pages.WELCOME, " You can search for words.", "\n\n"),
  *("Your task is to:", " find a", ") with", ", for less than", " dollars"),
  *("search[", "click[", "]", "Results 1 to", " to", " of", " for:", "\n"),
  *(" | ", " (not chosen): ", ": ", ", ", " (", "): ", " and", " with"),
  *("You have bought ", "Nothing was found for:", webshop_pages.REFUSED),
  *(*webshop_pages.PARTS, webshop_pages.BUY, webshop_pages.BACK),
  *(webshop_pages.NEXT, webshop_pages.PREVIOUS, "average rating:", "none"),
  *("$", ".99", "not possible"),
  # Questions.
  *(" answer the question.", " What is the", " Who is the", " of the", "?"),
  *(questions_env.INVALID, questions_env.NOTHING_FOUND, "The episode is over."),
  *("search", "answer", "expand", " done", "."),
  # Papers.
  *(" find papers.", " Which papers use", " List the papers that apply"),
  *(papers_env.INVALID, papers_env.NOTHING_NEW, papers_env.REPEATED),
  *(papers_env.NOT_FOUND_YET, papers_env.EXPANDED, "[", "] (1.00)"),
  *("] (0.00)", " for", " in", " by", ":"),
)


def pieces() -> list[str]:
  """The pieces that are decided here and not learned, without repetition."""
  numbers = range(LARGEST_NUMBER + 1)
  both = [*_shop_words(), *_question_words(), *_paper_words()]
  found = [
    *_TEXT,
    *(f" {word}" for word in both),
    *both,
    *(f" {word.capitalize()}" for word in _spoken()),
    *(word.capitalize() for word in _spoken()),
    *(f"p{number}" for number in numbers),
    *(f" p{number}" for number in numbers),
    *(f" {number}" for number in numbers),
    *(str(number) for number in range(10, LARGEST_NUMBER + 1)),
    *_syllables(),
  ]
  return list(dict.fromkeys(found))


def _shop_words() -> Iterator[str]:
  for _, attributes, kinds in webshop_tables.DEPARTMENTS.values():
    yield from attributes
    yield from kinds
  for name, values in webshop_tables.OPTIONS.items():
    yield name
    yield from values


def _question_words() -> Iterator[str]:
  yield from questions_worlds.FAMILIES
  for facts in questions_worlds.FACTS.values():
    for noun, _, words in facts:
      yield from (noun, words.removesuffix("{}").strip())


def _paper_words() -> Iterator[str]:
  yield from (*papers_worlds.METHODS, *papers_worlds.PROBLEMS)
  yield from (*papers_worlds.QUALITIES, *papers_worlds.VAGUE)


def _spoken() -> Iterator[str]:
  """Words that stand at the start of names and titles."""
  yield from (*questions_worlds.ADJECTIVES, *questions_worlds.NOUNS)
  yield from (*papers_worlds.METHODS, *papers_worlds.PROBLEMS)
  yield from papers_worlds.QUALITIES


def _syllables() -> Iterator[str]:
  """Parts of invented names; codas and others are single letters or learned."""
  yield from webshop_tables.SYLLABLES
  yield from (f" {syllable}" for syllable in webshop_tables.SYLLABLES)
  yield from papers_worlds.SYLLABLES
  yield from (s.capitalize() for s in papers_worlds.SYLLABLES)
  yield from (f" {s.capitalize()}" for s in papers_worlds.SYLLABLES)
  for onset in questions_worlds.ONSETS:
    for vowel in dict.fromkeys(questions_worlds.VOWELS):
      yield f"{onset}{vowel}"
      yield f"{onset}{vowel}".capitalize()
      yield f" {onset}{vowel}".title()
  yield from questions_worlds.CODAS
