"""Pages of the table of episodes: filters, orders, and what can be chosen."""

import re
from collections.abc import Mapping
from typing import Any

from steppo_jax.viewer import index as index_lib

PAGE = 100
_ORDERS = {
  "at": "at", "reward": "reward", "steps": "steps", "tokens": "tokens",
  "version": "version", "task": "task", "uid": "id", "family": "family",
  "success": "success",
}  # fmt: skip
# Filters by equality, and those by a least and a most.
_EQUAL = ("task", "family", "split", "cause", "env")
_RANGES = ("at", "steps", "version", "reward", "tokens")
_COLUMNS = (
  "id", "uid", "at", "split", "task", "family", "success", "cause", "steps",
  "tokens", "sampled", "version", "reward",
)  # fmt: skip
_LABELLED = (
  "EXISTS (SELECT 1 FROM labels WHERE labels.uid = episodes.uid "
  "AND labels.split = episodes.split AND %s)"
)


def page(index: index_lib.Index, asked: Mapping[str, str]) -> dict[str, Any]:
  """A page of episodes.

  Args:
    index: Of the run.
    asked: `task`, `family`, `split`, `cause`, `env` (equal to), `success` ("1",
      "0"), `at_min`, `at_max` and so on for `at` (the update), `steps`,
      `version`, `reward`, `tokens`; `label` ("keep", "exclude", "note",
      "none", "not excluded"); `text` (words); `order` (a column, with "-" in
      front for the largest first), `page` from 0.

  Returns:
    `rows` as objects, `total` of all pages, `page` and `pages`.

  Raises:
    ValueError: a number is none, or an order is unknown.
  """
  where, values = _where(asked)
  order = asked.get("order") or "-at"
  column = _ORDERS.get(order.removeprefix("-"))
  if column is None:
    raise ValueError(f"order={order!r} is none of {', '.join(_ORDERS)}")
  way = "DESC" if order.startswith("-") else "ASC"
  number = max(0, int(_number("page", asked.get("page") or "0")))
  ((total,),) = index.query(
    f"SELECT count(*) FROM episodes WHERE {where}", *values
  )
  names = ", ".join(f"one.{name}" for name in _COLUMNS)
  order = f"{column} {way} NULLS LAST, id {way}"
  rows = index.query(
    f"SELECT {names}, verdict, note FROM (SELECT * FROM episodes "
    f"WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?) AS one LEFT JOIN labels "
    "ON labels.uid = one.uid AND labels.split = one.split "
    f"ORDER BY one.{column} {way} NULLS LAST, one.id {way}",
    *values, PAGE, min(number, 1 << 40) * PAGE,
  )  # fmt: skip
  return {
    "rows": [
      dict(zip((*_COLUMNS, "verdict", "note"), row, strict=True))
      for row in rows
    ],
    "total": total,
    "page": number,
    "pages": max(1, -(-total // PAGE)),
  }


def numbers(
  index: index_lib.Index, asked: Mapping[str, str], most: int
) -> list[int]:
  """Numbers of the first episodes that filters leave; see `page`."""
  where, values = _where(asked)
  rows = index.query(
    f"SELECT id FROM episodes WHERE {where} ORDER BY at, id LIMIT ?",
    *values, most,
  )  # fmt: skip
  return [number for (number,) in rows]


def choices(index: index_lib.Index) -> dict[str, Any]:
  """What filters can be set to: values that occur, with their numbers."""
  found: dict[str, Any] = {}
  for name in ("family", "split", "cause", "env"):
    found[name] = index.query(
      f"SELECT {name}, count(*) FROM episodes WHERE NOT hidden "
      f"AND {name} IS NOT NULL GROUP BY {name} ORDER BY {name} LIMIT 200"
    )
  ends = ", ".join(f"min({name}), max({name})" for name in _RANGES)
  (row,) = index.query(f"SELECT {ends} FROM episodes WHERE NOT hidden")
  pairs = zip(row[::2], row[1::2], strict=True)
  return found | dict(zip(_RANGES, pairs, strict=True))


def neighbours(index: index_lib.Index, task: str) -> list[dict[str, Any]]:
  """The updates in which a task was played, and how it went."""
  rows = index.query(
    "SELECT at, split, count(*), sum(success), avg(reward), sum(cause NOTNULL) "
    "FROM episodes WHERE task = ? AND NOT hidden GROUP BY at, split "
    "ORDER BY at, split",
    task,
  )
  names = ("at", "split", "episodes", "success", "reward", "failed")
  return [dict(zip(names, row, strict=True)) for row in rows]


def _number(name: str, text: str) -> float:
  try:
    number = float(text)
  except ValueError as error:
    raise ValueError(f"{name}={text!r} is no number") from error
  if not abs(number) < 1e15:  # Nor is a NaN.
    raise ValueError(f"{name}={text!r} is no number that occurs")
  return number


def _where(asked: Mapping[str, str]) -> tuple[str, list[Any]]:
  given = {name: value for name, value in asked.items() if value != ""}
  parts, values = ["NOT hidden"], []
  for name in _EQUAL:
    if name in given:
      parts.append(f"episodes.{name} = ?")
      values.append(index_lib.clean(given[name]))
  if "success" in given:
    parts.append("episodes.success = ? AND cause IS NULL")
    values.append(int(given["success"] == "1"))
  if given.get("failed"):
    parts.append("cause IS NOT NULL")
  for name in _RANGES:
    for ending, sign in (("min", ">="), ("max", "<=")):
      key = f"{name}_{ending}"
      if key in given:
        parts.append(f"episodes.{name} {sign} ?")
        values.append(_number(key, given[key]))
  label = given.get("label")
  if label in ("keep", "exclude"):
    parts.append(_LABELLED % f"verdict = '{label}'")
  elif label == "note":
    parts.append(_LABELLED % "note != ''")
  elif label == "none":
    parts.append("NOT " + _LABELLED % "verdict != ''")
  elif label == "not excluded":
    parts.append("NOT " + _LABELLED % "verdict = 'exclude'")
  words = _words(given.get("text", ""))
  if words:
    parts.append("episodes.id IN (SELECT rowid FROM words WHERE words MATCH ?)")
    values.append(words)
  return " AND ".join(parts), values


def _words(text: str) -> str:
  """What somebody typed as a query: words that all occur, phrases in quotes.

  The last word may be the beginning of one, as it is still being typed.
  """
  text = index_lib.clean(text).replace("\0", " ")
  terms = []
  for quoted, plain in re.findall(r'"([^"]*)"?|([^\s"]+)', text):
    term = quoted or plain
    if any(letter.isalnum() for letter in term):
      terms.append(f'"{term}"')
  if terms and not text.endswith(('"', " ")):
    terms[-1] += "*"
  return " ".join(terms)
