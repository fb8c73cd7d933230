"""ScienceWorld: experiments of elementary-school science; needs Java.

Source: Wang et al. 2022, arXiv:2203.07540.
"""

import itertools
from collections.abc import Sequence

from steppo_jax.envs import guides, seeds
from steppo_jax.envs.text_worlds import adapter

GUIDE = guides.Guide(
  part="You do an experiment in a house. Its first text says what your task "
  "is. To focus on a wrong thing loses the game.",
  answer="Answer with exactly one command, such as: open door to kitchen.",
  tools=guides.env_step("does one command", "go to kitchen"),
  unwrap="env_step",
)


def _ordered(text: str) -> str:
  """The text with lists, which come in another order each time, in order."""
  lines = itertools.groupby(text.split("\n"), lambda x: x.startswith("\t"))
  return "\n".join(
    line for is_list, of in lines for line in (sorted(of) if is_list else of)
  )


class ScienceWorld(adapter.TextWorld):
  """Plays tasks of ScienceWorld; splits are the package's variations.

  Args:
    tasks: Names of tasks, or one name, as the package has them.
    simplifications: The package's text of them, such as "easy".
    commands: Whether the possible commands are told. There are hundreds, and
      to find them takes most of the time of a step.
    games: How many are played at once; each has a Java process of 1.5 GB.
    invalid_penalty: See `adapter.TextWorld`.
  """

  def __init__(
    self,
    *,
    tasks: str | Sequence[str] = "find-living-thing",
    simplifications: str = "easy",
    commands: bool = False,
    games: int = 2,
    invalid_penalty: float = 0.0,
  ):
    super().__init__(invalid_penalty)
    made = adapter.package("scienceworld", "scienceworld", java=True)
    self._env = made.ScienceWorldEnv("", envStepLimit=adapter.NO_LIMIT)
    self._tasks = [tasks] if isinstance(tasks, str) else list(tasks)
    with adapter.ends_java_if_refused(self._env):
      for name in self._tasks:
        adapter.one_of("tasks", name, self._env.get_task_names())
    self._simplifications = simplifications
    if not commands:
      self._env.get_valid_action_object_combinations = list

  @staticmethod
  def at_once(games: int = 2) -> int:
    """How many games can be played at once."""
    return games

  def begin(self, at: seeds.Place) -> adapter.Turn:
    number, which = divmod(at.number, len(self._tasks))
    load = lambda v: self._env.load(
      self._tasks[which], v, self._simplifications
    )
    load(0)  # The lists of variations are those of the task that is loaded.
    own = (
      self._env.get_variations_train,
      self._env.get_variations_dev,
      self._env.get_variations_test,
    )[at.split]()
    load(own[number % len(own)])
    text, infos = self._env.reset()
    return self._turn(f"{infos['taskDesc']}\n\n{text}", infos)

  def play(self, command: str) -> adapter.Turn:
    text, _, over, infos = self._env.step(command)
    return self._turn(text, infos)._replace(
      over=over, won=infos["score"] >= 100
    )

  def _turn(self, text, infos) -> adapter.Turn:
    return adapter.Turn(
      _ordered(text),
      infos["score"] / 100,
      invalid=text.startswith("No known action"),
      commands=infos["valid"],
      state=_ordered(f"{infos['look']}\n{infos['inv']}"),
    )

  def close(self) -> None:
    """Ends the Java process."""
    adapter.end_java(self._env)
