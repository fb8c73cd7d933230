"""Who demonstrates an environment: experts, and episodes played by them.

An environment's row in `base.ENVS`, or in the package that brings it, names its
expert. Imitation learning is the only user; training by reward needs none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.envs.tasks import Worlds


class Played(NamedTuple):
  """An episode as it was demonstrated.

  Attributes:
    observations: What was seen, one more than there are actions.
    actions: What was written.
    rewards: One for each action.
    commands: What could be answered to each observation, as the environment's
      `info["commands"]` has it: prompts list them to whoever plays, and so must
      the prompts of demonstrations. () where the environment names none.
  """

  observations: Sequence[str]
  actions: Sequence[str]
  rewards: Sequence[float]
  commands: Sequence[Sequence[str]] = ()


class Expert(NamedTuple):
  """How one environment is demonstrated: by a plan, or by playing.

  Attributes:
    worlds: Generator of its tasks.
    plan: Actions that solve a task, for an expert that knows beforehand.
    spoil: Makes a worse plan of a plan, with a chance of a mistake at every
      step: `spoil(task, actions, noise=, random=)`. None for an expert whose
      demonstrations are without mistakes.
    show: Plays an episode itself, for an expert that looks at what it sees:
      `show(task, detours=, noise=, random=, thoughts=)`; see
      `envs.household.expert`. Either `plan` or `show` is given.
    text: The key of the task's payload that holds the problem as text.
  """

  worlds: Worlds
  plan: Callable[[types.Task], Sequence[str]] | None = None
  spoil: Callable[..., Sequence[str]] | None = None
  show: Callable[..., Played] | None = None
  text: str = "task"


def names() -> list[str]:
  """The environments that have an expert, sorted."""
  return sorted(n for n in base.names() if base.row(n).expert is not None)


def get(env: str) -> Expert:
  """The expert of an environment.

  Args:
    env: A name that `base.row` knows.

  Raises:
    ValueError: there is no such environment, it has no expert, or its row
      names something else.
  """
  target = base.row(env).expert
  if target is None:
    raise ValueError(
      f"there are demonstrations of {', '.join(names())}, not of {env!r}"
    )
  found = base.attribute(target)
  if not isinstance(found, Expert) or (found.plan is None) == (
    found.show is None
  ):
    raise ValueError(
      f"the expert {target} of {env} is no steppo_jax.envs.experts.Expert with "
      "either plan or show"
    )
  return found


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
  commands = [out.info.get("commands", ())]
  for action in actions:
    out = env.step(action)
    if out.info.get("invalid"):
      raise ValueError(f"task {task.uid}: the expert's {action!r} was refused")
    observations.append(out.observation)
    rewards.append(out.reward)
    commands.append(out.info.get("commands", ()))
  if wins and not out.info["won"]:
    raise ValueError(
      f"task {task.uid}: the expert's plan does not win; other options of the "
      "environment may hide what it needs"
    )
  return Played(observations, actions, rewards, commands)
