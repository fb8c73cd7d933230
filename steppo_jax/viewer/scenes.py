"""What an environment showed, in the parts that the page draws a view of.

Observations are recorded as text alone, so the parts are read off the text: a
product with its options, a list of documents, the places of a room, and the
commands that a prompt lists. A text of another form has no view, and is still
shown as the tokens that it is.
"""

import re
from typing import Any

from steppo_jax.envs import calls
from steppo_jax.envs.papers import env as papers
from steppo_jax.envs.questions import env as questions
from steppo_jax.envs.webshop import pages

_SIGHT = re.compile(r"(?:^|\n)You see: ")
_BEHIND = re.compile(r"\n(?:Before that:|This is step \d+\.|Possible: )")
_POSSIBLE = re.compile(r"(?:^|\n)Possible: (.*)")
_TASK = re.compile(r"(?:^|\n)\s*Your task is to: .*", re.DOTALL)

_PRODUCT = re.compile(r"(\S+) \| (.*) \| ([^|]*)")
_RESULTS = re.compile(r"Results (\d+) to (\d+) of (\d+) for: (.*)")
_NONE_FOUND = "Nothing was found for: "
_BOUGHT = "You have bought "
# Names of options may hold brackets, and so may values that were chosen.
_OPTIONS = (
  re.compile(r"(.+?) \(([^()]*)\): (.*)"),
  re.compile(r"(.+?) \((.*?)\): (.*)"),
)

_PAPER = re.compile(r"\[([^\]]+)\](?: \((-?\d+\.\d+)\))? (.*)")
_SEEN = re.compile(r"([^.\n]*?),? you see ([^.\n]*)\.")


def of_step(env: str, text: str, answer: str) -> dict[str, Any] | None:
  """The view of what a step saw; None where its text has none.

  Args:
    env: Name of the environment, as its tasks say it.
    text: The observation, or a prompt that ends with it.
    answer: What the policy wrote.

  Returns:
    JSON-able: `kind` ("shop", "documents", "room" or "commands") and what it
    has, `commands` that the prompt lists, and which buttons were `taken`.
  """
  listed = _POSSIBLE.findall(text)
  commands = listed[-1].split(", ") if listed else []
  seen = _BEHIND.split(_SIGHT.split(text)[-1])[0].strip()
  read = _KINDS.get(env)
  found = read(seen) if read else None
  if found is None and not commands:
    return None
  said = " ".join(calls.without_thoughts(answer).casefold().split())
  found = {"kind": "commands"} | (found or {}) | {"commands": commands}
  names = {name.casefold() for name in commands}
  names |= {f"click[{name}]".casefold() for name in _clicks(found)}
  return found | {"taken": sorted(name for name in names if name in said)}


def _clicks(found) -> list[str]:
  options = found.get("options", ())
  products = [one["id"] for one in found.get("products", ())]
  values = [value for option in options for value in option["values"]]
  return [*found.get("buttons", ()), *products, *values]


def _shop(text: str) -> dict[str, Any] | None:
  lines = _TASK.sub("", text).strip().split("\n")
  made = {"kind": "shop", "refused": lines[0] == pages.REFUSED}
  head, *rest = lines[1:] if made["refused"] and lines[1:] else lines
  if head.startswith(pages.WELCOME):
    return made | {"page": "start", "text": head}
  if head.startswith(_NONE_FOUND):
    query = head.removeprefix(_NONE_FOUND)
    none = {"page": "results", "query": query, "products": []}
    return made | none | {"buttons": [pages.BACK]}
  results = _RESULTS.fullmatch(head)
  if results:
    return made | _results(results, rest)
  bought = head.startswith(_BOUGHT)
  product = _product(head.removeprefix(_BOUGHT))
  if product is None:
    return None
  made |= product
  if bought:
    return made | {"page": "end"}
  ways = [pages.PREVIOUS, pages.BACK, pages.BUY]
  if rest and rest[0] in {f"{part}:" for part in pages.PARTS}:
    part, body = rest[0][:-1], "\n".join(rest[1:])
    return made | {"page": "part", "part": part, "text": body, "buttons": ways}
  return made | {
    "page": "item",
    "options": [one for line in rest if (one := _option(line))],
    "buttons": [*pages.PARTS, *ways],
  }


def _option(line: str) -> dict[str, Any] | None:
  found = next(filter(None, (form.fullmatch(line) for form in _OPTIONS)), None)
  if found is None:
    return None
  values = found[3].split(", ")
  return {"name": found[1], "chosen": found[2], "values": values}


def _results(found, lines) -> dict[str, Any]:
  first, last, total = (int(found[index]) for index in (1, 2, 3))
  ways = [(pages.NEXT, last < total), (pages.PREVIOUS, first > 1)]
  return {
    "page": "results",
    "query": found[4],
    "range": [first, last, total],
    "products": [one for line in lines if (one := _product(line))],
    "buttons": [*(name for name, there in ways if there), pages.BACK],
  }


def _product(line: str) -> dict[str, str] | None:
  found = _PRODUCT.fullmatch(line)
  return found and {"id": found[1], "title": found[2], "price": found[3]}


def _papers(text: str) -> dict[str, Any] | None:
  notes = {papers.INVALID, papers.NOTHING_NEW}
  made = []
  for line in _lines(text):
    found = _PAPER.fullmatch(line)
    if found:
      score = None if found[2] is None else float(found[2])
      made.append({"id": found[1], "score": score, "title": found[3]})
    else:
      notes.add(line)
  return _documents(text, made, notes)


def _paragraphs(text: str) -> dict[str, Any] | None:
  more = questions.MORE_CALLS.partition("{")[0]
  notes = {questions.INVALID, questions.NOTHING_FOUND}
  notes |= {line for line in _lines(text) if line.startswith(more)}
  made = []
  for line in _lines(text):
    if line not in notes:
      title, _, body = line.partition(": ")
      made.append({"title": title, "text": body} if body else {"text": line})
  return _documents(text, made, notes)


def _documents(text, made, notes) -> dict[str, Any] | None:
  told = [line for line in _lines(text) if line in notes]
  if not made and not told:
    return None
  return {"kind": "documents", "found": made, "notes": told}


def _lines(text: str) -> list[str]:
  lines = _TASK.sub("", text).split("\n")
  return [line.strip() for line in lines if line.strip()]


def _room(text: str) -> dict[str, Any] | None:
  places = []
  for where, what in _SEEN.findall(_TASK.sub("", text)):
    things = re.split(r", (?:and )?|^and ", what)
    things = [thing.removeprefix("and ") for thing in things if thing]
    empty = things == ["nothing"]
    places.append({"where": where.strip(), "things": [] if empty else things})
  return {"kind": "room", "places": places} if places else None


_KINDS = {
  "webshop": _shop,
  "paper_search": _papers,
  "search_qa": _paragraphs,
  "household": _room,
  "alfworld": _room,
}
