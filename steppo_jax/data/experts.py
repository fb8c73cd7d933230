"""Who demonstrates: an expert for the generated worlds of every environment."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.data import expert, scratchpad
from steppo_jax.envs import (
  base,
  bm25,
  household,
  household_worlds,
  paper_worlds,
  search_worlds,
  webshop,
  webshop_pages,
  webshop_worlds,
)

DIALECT = "move"

_THOUGHTS = {"long": scratchpad.thought, "brief": scratchpad.brief_thought}
_TAGGED = re.compile(r"<(\w+)>(.*)</\1>", re.DOTALL)


class Played(NamedTuple):
  """An episode as it was demonstrated.

  Attributes:
    observations: What was seen, one more than there are actions.
    actions: What was written.
    rewards: One for each action.
  """

  observations: Sequence[str]
  actions: Sequence[str]
  rewards: Sequence[float]


class Expert(NamedTuple):
  """How one environment is demonstrated.

  Attributes:
    worlds: Generator of its tasks, as in `data.tasks`.
    plan: Actions that solve a task; None for the household, whose expert looks
      at what it sees.
    spoil: Makes a worse plan of a plan, with a chance of a mistake at every
      step; None where demonstrations are without.
  """

  worlds: Any
  plan: Callable[[types.Task], list[str]] | None
  spoil: Callable[..., list[str]] | None = None


def play_household(
  task: types.Task,
  *,
  detours: float,
  noise: float,
  random: np.random.Generator,
  thoughts: str | None,
) -> Played:
  """A household game, won by `expert.demonstrate`.

  `thoughts` before the commands are None, "long" or "brief".
  """
  game = household.Game.from_compact(
    task.payload["game"], task.payload["task"], dialect=DIALECT
  )
  observations, commands = expert.demonstrate(
    game, detours=detours, noise=noise, random=random
  )
  rewards = [0.0] * (len(commands) - 1) + [1.0]
  if thoughts:
    commands = scratchpad.write(
      observations, commands, random, _THOUGHTS[thoughts]
    )
  return Played(observations, commands, rewards)


def play(
  task: types.Task, env: types.Env, actions: Sequence[str], *, wins: bool
) -> Played:
  """An episode in which a plan is carried out.

  Args:
    task: What is played.
    env: Where.
    actions: The plan.
    wins: Whether it has to win.

  Raises:
    ValueError: the plan does not win, or an action of it is refused.
  """
  out = env.reset(task, 0)
  observations, rewards = [out.observation], []
  for action in actions:
    out = env.step(action)
    if out.info.get("invalid"):
      raise ValueError(f"task {task.uid}: the expert's {action!r} was refused")
    observations.append(out.observation)
    rewards.append(out.reward)
  if wins and not out.info["won"]:
    raise ValueError(
      f"task {task.uid}: the expert's plan does not win; other options of the "
      "environment may hide what it needs"
    )
  return Played(observations, actions, rewards)


def make_env(name: str, options: Mapping[str, Any]) -> types.Env:
  """An environment with its own options and no penalty.

  Raises:
    ValueError: it has no such option.
  """
  common = {"name": name, "size": next(iter(EXPERTS[name].worlds.SIZES))}
  return base.resolve(name, common, options).env.make()


def shopper(task: types.Task) -> list[str]:
  """Buys what is wanted after a search for its kind and attributes.

  Falls back on `webshop.plan` where that lists the product on no first page.
  """
  calls = webshop.plan(task)
  catalog = webshop_worlds.shop(**task.payload["shop"])
  goal = catalog.goals[task.payload["goal"]]
  words = bm25.words(f"{goal.query} {' '.join(goal.attributes)}")
  first = catalog.search(words)[: catalog.page_size]
  if goal.asin not in [product.asin for product in first]:
    return calls
  turn = f"click[{webshop_pages.NEXT}]"
  rest = [call for call in calls[1:] if call != turn]
  return [f"search[{' '.join(words)}]", *rest]


def reader(task: types.Task) -> list[str]:
  """Searches both paragraphs of a question, then answers."""
  return _plain(search_worlds.expert(task))


def answer_in_haste(
  task: types.Task,
  actions: Sequence[str],
  *,
  noise: float,
  random: np.random.Generator,
) -> list[str]:
  """Answers with some name of the paragraph just read, now and then.

  Args:
    task: A generated question.
    actions: The plan of `reader`.
    noise: Chance of doing so after a search.
    random: Draws when, and which name.
  """
  rows = {id_: (title, text) for id_, title, text in task.payload["paragraphs"]}
  titles = [title for title, _ in rows.values()]
  for count, id_ in enumerate(task.payload["gold_ids"], 1):
    own, text = rows[id_]
    told = [title for title in titles if title in text and title != own]
    if told and random.random() < noise:
      return [*actions[:count], f"answer {random.choice(told)}"]
  return list(actions)


def librarian(task: types.Task) -> list[str]:
  """Searches the method and the problem, expands, and says that it is done."""
  _, *expands = paper_worlds.expert(task)
  method, problem = paper_worlds.asked_for(task)
  return [f"search {method} {problem}", *_plain(expands), "answer done"]


def _plain(actions: Sequence[str]) -> list[str]:
  """Calls in the form for small models; see `envs.tool_calls`."""
  return [_TAGGED.sub(r"\1 \2", action) for action in actions]


EXPERTS = {
  "household": Expert(household_worlds, None),
  "webshop": Expert(webshop_worlds, shopper),
  "search_qa": Expert(search_worlds, reader, answer_in_haste),
  "paper_search": Expert(paper_worlds, librarian),
}
