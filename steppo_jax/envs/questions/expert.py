"""Experts for two-hop questions: one that reads, one that is hasty."""

from collections.abc import Sequence

import numpy as np

from steppo_jax import types
from steppo_jax.envs import calls, experts
from steppo_jax.envs.questions import worlds as questions_worlds


def reader(task: types.Task) -> list[str]:
  """Searches both paragraphs of a question, then answers."""
  return calls.plain(questions_worlds.expert(task))


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


EXPERT = experts.Expert(
  questions_worlds, reader, answer_in_haste, text="question"
)
