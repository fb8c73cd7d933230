"""Guide and task lists of two-hop questions: generated, or from a folder."""

from steppo_jax.envs import base, guides, tasks
from steppo_jax.envs.questions import data as questions_data
from steppo_jax.envs.questions import worlds as questions_worlds

GUIDE = guides.Guide(
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
    "search": guides.Tool(
      "query", "finds paragraphs by words", "Big Fish director"
    ),
    "answer": guides.Tool("answer", "gives the answer and ends", "Burbank"),
  },
)


def questions(size: str, data_dir: str | None = None) -> base.TaskList:
  """Two-hop questions, generated or from a folder; see `questions.data`."""
  if data_dir is None:
    return tasks.GeneratedTasks(questions_worlds, size)
  return tasks.RecordedTasks(
    lambda split: questions_data.load_tasks(data_dir, split),
    "train",
    lambda: questions_data.splits(data_dir),
  )
