"""What agents are told: their part, their tools and how to answer.

The sections and tools are those of the published agents, the wording is ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from steppo_jax.rollout import tool_dialects


class Tool(NamedTuple):
  """A tool that an agent may call.

  Attributes:
    key: Name of its only argument.
    purpose: What it does, for the agent.
    example: An argument.
  """

  key: str
  purpose: str
  example: str


@dataclasses.dataclass(frozen=True)
class Guide:
  """What the agents of one environment are told.

  Attributes:
    part: Who the agent is and what it can do.
    answer: How an answer is written without tool calls.
    tools: The tools by name, as in calls.
    unwrap: The tool whose argument is what the environment reads; None where
      the environment reads the calls themselves.
  """

  part: str
  answer: str
  tools: Mapping[str, Tool]
  unwrap: str | None = None

  def describe_tools(self, dialect: tool_dialects.Dialect) -> str:
    """The tools, one line each, and the form of a call."""
    lines = ["Tools:"]
    for name, tool in self.tools.items():
      lines.append(f'- {name}("{tool.key}"): {tool.purpose}')
    return "\n".join([*lines, f"A call is written {self.example(dialect)}"])

  def example(self, dialect: tool_dialects.Dialect) -> str:
    """A call of the first tool as the dialect writes it."""
    name, tool = next(iter(self.tools.items()))
    return tool_dialects.spell(name, {tool.key: tool.example}, dialect)


THINK = (
  "Think first, inside <think> and </think>: what was found out, and what is "
  "the next useful thing to do."
)
ONE_CALL = "Then make exactly one call of a tool."
SEVERAL_CALLS = "Then make one or several calls of tools."
INVALID_CALL = "Your last answer was no valid call. A call is written "

_ACTS = "Answer with exactly one of the commands that are possible."


def _env_step(purpose, example):
  return {"env_step": Tool("action", purpose, example)}


_HOUSEHOLD = Guide(
  part=(
    "You are a robot in a home. You go to places, open and close what can be "
    "opened, carry one thing at a time, and use appliances to heat, cool, "
    "clean or light things."
  ),
  answer=_ACTS,
  tools=_env_step("does one of the possible commands", "go to desk 1"),
  unwrap="env_step",
)

GUIDES = {
  "household": _HOUSEHOLD,
  "alfworld": _HOUSEHOLD,
  "alfworld_original": _HOUSEHOLD,
  "webshop": Guide(
    part=(
      "You are a customer of a web shop. You search for words, open products, "
      "choose the options that are asked for, and buy the product that has "
      "everything that is wanted at a price below the limit."
    ),
    answer=(
      "Answer with exactly one call: search[words], or click[...] with what is "
      "written on the page."
    ),
    tools=_env_step("searches or clicks", "search[green desk lamp]"),
    unwrap="env_step",
  ),
  "search_qa": Guide(
    part=(
      "You answer a question whose answer stands in several paragraphs of a "
      "collection. You search the collection for words until you know enough, "
      "and then give a short answer: a name, a date, a number, yes or no."
    ),
    answer=(
      "Answer with <search>words</search>, at most four of them, or with "
      "<answer>the answer</answer>."
    ),
    tools={
      "search": Tool("query", "finds paragraphs by words", "Big Fish director"),
      "answer": Tool("answer", "gives the answer and ends", "Burbank"),
    },
  ),
  "paper_search": Guide(
    part=(
      "You collect all papers that answer a query. A search finds papers by "
      "words; expanding a paper that was found lists what it cites and what "
      "cites it. A number behind a paper says how well it fits the query."
    ),
    answer=(
      "Answer with <search>words</search>, <expand>id</expand>, at most five "
      "of them, or <answer>done</answer>."
    ),
    tools={
      "search": Tool("query", "finds papers by words", "sparse attention"),
      "expand": Tool("paper_id", "lists the citations of a paper", "p12"),
      "answer": Tool("answer", "ends the search", "done"),
    },
  ),
}

# Of environments that are not in the table.
OTHER = Guide(
  part="You act in an environment that answers in text.",
  answer=_ACTS,
  tools=_env_step("does one of the possible commands", "look"),
  unwrap="env_step",
)


def get(env: str) -> Guide:
  """The guide of an environment by its name in `env.name`."""
  return GUIDES.get(env, OTHER)
