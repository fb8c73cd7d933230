"""What agents are told: who they are, their tools and how to answer.

The guide of an environment stands in the `tasks` module of its folder. Sections
and tools are those of the published agents, the wording is ours.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from steppo_jax.envs import base


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


ONE_COMMAND = "Answer with exactly one of the commands that are possible."


def env_step(purpose: str, example: str) -> dict[str, Tool]:
  """The only tool of an environment that reads commands as plain text."""
  return {"env_step": Tool("action", purpose, example)}


# Of environments whose row names none.
OTHER = Guide(
  part="You act in an environment that answers in text.",
  answer=ONE_COMMAND,
  tools=env_step("does one of the possible commands", "look"),
  unwrap="env_step",
)


def get(env: str) -> Guide:
  """The guide of an environment by its name in `env.name`.

  An agent that is not played through the table has the general guide too.

  Raises:
    ValueError: the environment's row names something else.
  """
  target = base.row(env).guide if env in base.names() else None
  if target is None:
    return OTHER
  found = base.attribute(target)
  if not isinstance(found, Guide):
    raise ValueError(
      f"the guide {target} of {env} is no steppo_jax.envs.guides.Guide"
    )
  return found
