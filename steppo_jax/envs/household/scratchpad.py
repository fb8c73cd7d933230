"""What an expert of the household writes down before each command.

A thought repeats the task, notes what has just been seen, weighs, and says what
comes next: 40 to 60 tokens of the tokenizer "scratchpad", or some 20 in brief,
where it only weighs or notes a failure. Its sentences are drawn from several of
one meaning, so that most tokens of a thought are free and only few of them
matter for the command.
"""

import re
from collections.abc import Callable

import numpy as np

from steppo_jax.envs.household import text as household_text

_TASK = re.compile(r"Your task is to: (.*)")

_OPENINGS = (
  " Let me think.",
  " First I check where I am.",
  " One thing after another.",
  " So far so good.",
  " I stay calm and look around.",
  " What is the best step now?",
)
_GOALS = (
  " My goal is still to {task}",
  " I was asked to {task}",
  " Remember that I must {task}",
  " In the end I have to {task}",
)
_REFUSED = (
  " That command did nothing, so I try something else.",
  " My last command was refused. I need a different one.",
)
_EMPTY = (
  " There is nothing useful here.",
  " This place is empty, so I search elsewhere.",
  " Nothing here helps me.",
)
_SEEN = (
  " I can see several things from here.",
  " I take note of everything that I see.",
  " This tells me more about the room.",
)
_DONE = (
  " That worked as I expected.",
  " Good, this part is finished.",
  " One step closer to the goal.",
)
# What leads to a command, by its first word.
_REASONS = {
  "go": (
    " It seems likely that I need to be somewhere else.",
    " I should walk over there now.",
    " The next place worth a visit is clear.",
  ),
  "open": (
    " It is closed, and something may be hidden inside.",
    " I cannot know what it holds before I look inside.",
  ),
  "take": (
    " This is exactly what I was searching for.",
    " I want to carry it with me.",
  ),
  "move": (
    " This is where it belongs.",
    " Now I can leave it here.",
  ),
  "heat": (" It has to become hot first.", " Some warmth is required."),
  "cool": (" It has to become cold first.", " Some cold is required."),
  "clean": (" It has to be washed first.", " Some water is required."),
  "use": (" I need light for this.", " Switching it on will help."),
}
_OTHER = (" I will see what happens.", " Perhaps this brings something new.")
_CLOSINGS = (
  " Therefore I choose: {command}.",
  " My decision is: {command}.",
  " So the next command is: {command}.",
)


def sentences() -> list[str]:
  """Every sentence, with its places for a task or a command left open."""
  groups = [
    *(_OPENINGS, _GOALS, _REFUSED, _EMPTY, _SEEN, _DONE),
    *(*_REASONS.values(), _OTHER, _CLOSINGS),
  ]
  return [text for group in groups for text in group]


def words() -> list[str]:
  """The words and marks of all sentences, as they stand: " word" or "."."""
  text = "".join(sentences()).replace("{task}", "").replace("{command}", "")
  found = re.findall(r" [A-Za-z]+|[.,:?]", text)
  return sorted(set(found))


def thought(
  task: str, observation: str, command: str, random: np.random.Generator
) -> str:
  """What is thought between an observation and a command.

  Args:
    task: What is to be done, such as "put a mug in shelf."
    observation: What was seen last.
    command: What will be done.
    random: Chooses among sentences of one meaning.
  """
  draw = lambda group: str(random.choice(group))
  parts = [draw(_OPENINGS), draw(_GOALS).format(task=task)]
  if observation == household_text.NOTHING:
    parts.append(draw(_REFUSED))
  elif "you see nothing" in observation:
    parts.append(draw(_EMPTY))
  elif "you see" in observation:
    parts.append(draw(_SEEN))
  else:
    parts.append(draw(_DONE))
  parts.append(draw(_reasons(command)))
  return "".join(parts) + draw(_CLOSINGS).format(command=command)


def brief_thought(
  task: str, observation: str, command: str, random: np.random.Generator
) -> str:
  """The same in two sentences: a failure or else a reason, and the command."""
  del task
  draw = lambda group: str(random.choice(group))
  failed = observation == household_text.NOTHING
  first = draw(_REFUSED if failed else _reasons(command))
  return first + draw(_CLOSINGS).format(command=command)


def _reasons(command):
  return _REASONS.get(command.split()[0], _OTHER)


def write(
  observations: list[str],
  commands: list[str],
  random: np.random.Generator,
  think: Callable[..., str],
) -> list[str]:
  """The commands of an episode, each behind its thought.

  Args:
    observations: What was seen, one more than there are commands; the first
      names the task.
    commands: What was done.
    random: Chooses among sentences of one meaning.
    think: `thought` or `brief_thought`.

  Raises:
    ValueError: the first observation names no task.
  """
  found = _TASK.search(observations[0])
  if found is None:
    raise ValueError(f"no task in {observations[0][-80:]!r}")
  return [
    f"{household_text.THOUGHT}{think(found[1], seen, command, random)}"
    f"{household_text.THOUGHT_END} {command}"
    for seen, command in zip(observations[:-1], commands, strict=True)
  ]
