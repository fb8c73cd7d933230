"""MiniGrid and BabyAI: what the agent sees of a grid, told in text.

Sources: Chevalier-Boisvert et al. 2023, arXiv:2306.13831; the form of the text
follows Carta et al. 2023, arXiv:2302.02662.
"""

import numpy as np

from steppo_jax import types
from steppo_jax.envs import experts, guides, seeds
from steppo_jax.envs.text_worlds import adapter

COMMANDS = (
  "turn left", "turn right", "go forward", "pick up", "drop", "toggle",
)  # fmt: skip
_NOTHING = ("unseen", "empty", "floor", "agent")
GUIDE = guides.Guide(
  part="You walk on a grid and see what lies before you. Your mission is told "
  "with every observation.",
  answer=guides.ONE_COMMAND,
  tools=guides.env_step("does one of the possible commands", "go forward"),
  unwrap="env_step",
)


class MiniGrid(adapter.TextWorld):
  """Plays one kind of grid; the package pays 1 - 0.9 steps / its limit.

  Args:
    id: What `gymnasium.make` takes, such as "BabyAI-GoToObj-v0".
    invalid_penalty: See `adapter.TextWorld`.
  """

  def __init__(
    self, *, id: str = "BabyAI-GoToObj-v0", invalid_penalty: float = 0.0
  ):
    super().__init__(invalid_penalty)
    adapter.package("minigrid", "minigrid")
    self._env = adapter.package("gymnasium", "minigrid").make(id)
    self._names = adapter.package("minigrid.core.constants", "minigrid")

  def begin(self, at: seeds.Place) -> adapter.Turn:
    seen, _ = self._env.reset(seed=at.seed)
    self._text = self._told(seen)
    return adapter.Turn(self._text, 0.0, commands=COMMANDS)

  def play(self, command: str) -> adapter.Turn:
    if command not in COMMANDS:
      text = f"There is no command {command[:80]!r}.\n{self._text}"
      return adapter.Turn(
        text, 0.0, invalid=True, commands=COMMANDS, state=self._text
      )
    action = COMMANDS.index(command)
    seen, reward, over, cut, _ = self._env.step(action)
    self._text = self._told(seen)
    return adapter.Turn(
      self._text, reward, over, over and reward > 0, cut, commands=COMMANDS
    )

  def _told(self, seen) -> str:
    """The mission, what is carried, and things, the nearest first."""
    image, names = seen["image"], self._names
    wide, deep = image.shape[0] // 2, image.shape[1] - 1  # Where it stands.
    states = {i: f"{s} " for s, i in names.STATE_TO_IDX.items()}
    things, carried = [], "nothing"
    for (x, y), kind in np.ndenumerate(image[:, :, 0]):
      name, ahead, side = names.IDX_TO_OBJECT[int(kind)], deep - y, x - wide
      # Of walls the one straight ahead is told.
      if name in _NOTHING or (name == "wall" and side):
        continue
      state = states[int(image[x, y, 2])] if name == "door" else ""
      thing = f"a {state}{names.IDX_TO_COLOR[int(image[x, y, 1])]} {name}"
      if (side, ahead) == (0, 0):
        carried = thing
        continue
      aside = f", {abs(side)} {'left' if side < 0 else 'right'}" if side else ""
      things.append((ahead + abs(side), side, f"{thing} {ahead} ahead{aside}"))
    told = "; ".join(text for *_, text in sorted(things)) or "nothing"
    return f"Mission: {seen['mission']}. You carry {carried}. You see {told}."

  def close(self) -> None:
    """Closes the environment."""
    self._env.close()


def plan(task: types.Task) -> list[str]:
  """What the package's own bot does in the grid that is played by default."""
  world = MiniGrid()
  bots = adapter.package("minigrid.utils.baby_ai_bot", "minigrid")
  world.begin(seeds.place(task.payload["seed"]))
  bot, commands, over = bots.BabyAIBot(world._env.unwrapped), [], False
  while not over:
    commands.append(COMMANDS[bot.replan()])
    over = world.play(commands[-1]).over
  world.close()
  return commands


EXPERT = experts.Expert(seeds.SeedTasks("minigrid"), plan=plan)
