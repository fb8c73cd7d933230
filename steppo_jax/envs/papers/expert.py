"""An expert for the paper search, which knows the generated library."""

from steppo_jax import types
from steppo_jax.envs import calls, experts
from steppo_jax.envs.papers import worlds as papers_worlds


def librarian(task: types.Task) -> list[str]:
  """Searches the method and the problem, expands, and says that it is done."""
  _, *expands = papers_worlds.expert(task)
  method, problem = papers_worlds.asked_for(task)
  return [
    f"search {method} {problem}",
    *calls.plain(expands),
    "answer done",
  ]


EXPERT = experts.Expert(papers_worlds, librarian, text="question")
