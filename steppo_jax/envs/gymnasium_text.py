"""Text environments of Gymnasium; needs the extra `gymnasium`."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from steppo_jax import types


class GymnasiumEnv:
  """A Gymnasium environment whose observations and actions are text.

  Observations are `str`, or a mapping with a `text_key`, or with `render=True`
  what `env.render()` writes (`render_mode="ansi"`). Actions are `str`, or with
  a discrete action space one of `commands`, by its place. A command that is
  none of them does not reach the environment. A task's `payload["seed"]` seeds
  the reset, `payload["options"]` is given to it.

  Args:
    id: What `gymnasium.make` takes.
    make_options: Further arguments of `gymnasium.make`.
    modules: Modules to import first, which register environments.
    commands: Names of the actions of a discrete space, in its order; without
      them the actions are named by their numbers.
    text_key: Key of the text in observations that are mappings.
    render: Whether the text is what the environment renders.
    won_above: An episode that terminates with a last reward above this counts
      as won, unless `info` has "won" or "is_success".
    invalid_penalty: Subtracted from the reward of a refused command.

  Raises:
    RuntimeError: Gymnasium is not installed.
    ValueError: actions that are neither text nor discrete, or another number of
      commands than of actions.
  """

  def __init__(
    self,
    id: str,
    *,
    make_options: Mapping[str, Any] | None = None,
    modules: Sequence[str] = (),
    commands: Sequence[str] = (),
    text_key: str = "text",
    render: bool = False,
    won_above: float = 0.0,
    invalid_penalty: float = 0.0,
  ):
    try:
      import gymnasium
    except ImportError as error:
      raise RuntimeError(
        "env.name=gymnasium needs Gymnasium: pip install "
        "'steppo_jax[gymnasium]'"
      ) from error
    for module in [modules] if isinstance(modules, str) else modules:
      importlib.import_module(module)
    options = {"render_mode": "ansi"} if render else {}
    self._env = gymnasium.make(id, **options | dict(make_options or {}))
    space = self._env.action_space
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    if not discrete and not isinstance(space, gymnasium.spaces.Text):
      raise ValueError(f"{id}: actions are {space}, neither text nor discrete")
    self._first = int(space.start) if discrete else 0
    count = int(space.n) if discrete else 0
    numbers = range(self._first, self._first + count)
    self._commands = [*commands] or [str(n) for n in numbers]
    if len(self._commands) != count:
      raise ValueError(
        f"{id}: {len(self._commands)} commands for {count} actions"
      )
    self._id = id
    self._text_key = text_key
    self._render = render
    self._won_above = won_above
    self._penalty = float(invalid_penalty)
    self._shown: str | None = None

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task."""
    seed = task.payload.get("seed", seed)
    observation, info = self._env.reset(
      seed=seed, options=task.payload.get("options")
    )
    return self._answer(observation, 0.0, False, False, info)

  def step(self, text: str) -> types.TimeStep:
    """Answers one text.

    Raises:
      RuntimeError: no task was started.
    """
    if self._shown is None:
      raise RuntimeError("call reset(task, seed) before step")
    action = text.strip()
    if self._commands:
      if action not in self._commands:
        info = {"won": False, "invalid": True} | self._menu()
        observation = f"There is no action {action[:80]!r}.\n{self._shown}"
        return types.TimeStep(observation, -self._penalty, False, False, info)
      action = self._first + self._commands.index(action)
    return self._answer(*self._env.step(action))

  def _answer(self, observation, reward, terminated, truncated, info):
    self._shown = self._text(observation)
    won = terminated and float(reward) > self._won_above
    facts = {
      "won": bool(info.get("won", info.get("is_success", won))),
      "invalid": bool(info.get("invalid", False)),
      "anchor": str(info.get("anchor", self._shown)),
    }
    return types.TimeStep(
      self._shown,
      float(reward),
      bool(terminated),
      bool(truncated),
      facts | self._menu(info),
    )

  def _menu(self, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    offered = (info or {}).get("commands", self._commands)
    return {"commands": [str(c) for c in offered]} if len(offered) else {}

  def _text(self, observation):
    if self._render:
      observation = self._env.render()
    elif isinstance(observation, Mapping):
      observation = observation.get(self._text_key)
    if not isinstance(observation, str):
      raise ValueError(
        f"{self._id}: the observation is {type(observation).__name__}, not "
        "text: set text_key or render"
      )
    return observation

  def close(self) -> None:
    """Closes the environment."""
    self._env.close()
