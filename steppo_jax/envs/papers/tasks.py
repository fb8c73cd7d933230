"""Guide and task lists of the paper search: generated, or from a folder."""

from steppo_jax.envs import base, guides, tasks
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.papers import worlds as papers_worlds

GUIDE = guides.Guide(
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
    "search": guides.Tool("query", "finds papers by words", "sparse attention"),
    "expand": guides.Tool("paper_id", "lists the citations of a paper", "p12"),
    "answer": guides.Tool("answer", "ends the search", "done"),
  },
)


def papers(size: str, data_dir: str | None = None) -> base.TaskList:
  """Queries for papers, generated or from a folder; see `papers.library`.

  Training reads "auto_dev": AutoScholarQuery's test split is for evaluation.
  """
  if data_dir is None:
    return tasks.GeneratedTasks(papers_worlds, size)
  load = lambda split: papers_library.load_tasks(data_dir, split)
  return tasks.RecordedTasks(
    load, "auto_dev", lambda: papers_library.splits(data_dir)
  )
