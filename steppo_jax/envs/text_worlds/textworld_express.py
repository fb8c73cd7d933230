"""TextWorld-Express: eight kinds of household games; needs Java.

Source: Jansen and Côté 2023, arXiv:2208.01174.
"""

from steppo_jax.envs import guides, seeds
from steppo_jax.envs.text_worlds import adapter

GUIDE = guides.Guide(
  part="You act in a text game. Its first text says what your task is.",
  answer=guides.ONE_COMMAND,
  tools=guides.env_step("does one of the possible commands", "take coin"),
  unwrap="env_step",
)


class TextWorldExpress(adapter.TextWorld):
  """Plays one kind of game; each split has 1,000 games, the package's own.

  Args:
    game: Kind, such as "coin" or "cookingworld".
    params: The package's text of parameters, such as "numLocations=3".
    games: How many are played at once; each has a Java process of 0.3 GB.
    invalid_penalty: See `adapter.TextWorld`.
  """

  def __init__(
    self,
    *,
    game: str = "coin",
    params: str = "",
    games: int = 4,
    invalid_penalty: float = 0.0,
  ):
    super().__init__(invalid_penalty)
    made = adapter.package("textworld_express", "textworld_express", java=True)
    self._env = made.TextWorldExpressEnv(envStepLimit=adapter.NO_LIMIT)
    with adapter.ends_java_if_refused(self._env):
      adapter.one_of("game", game, self._env.getGameNames())
      self._env.load(game, params)
    self._seeds = [
      self._env.getValidSeedsTrain(),
      self._env.getValidSeedsDev(),
      self._env.getValidSeedsTest(),
    ]

  @staticmethod
  def at_once(games: int = 4) -> int:
    """How many games can be played at once."""
    return games

  def begin(self, at: seeds.Place) -> adapter.Turn:
    own, fold = self._seeds[at.split], ("train", "dev", "test")[at.split]
    _, infos = self._env.reset(own[at.number % len(own)], fold)
    return self._turn(infos, f"{infos['taskDescription']}\n\n")

  def play(self, command: str) -> adapter.Turn:
    _, _, over, infos = self._env.step(command)
    return self._turn(infos)._replace(over=over, won=infos["tasksuccess"])

  def _turn(self, infos, before: str = "") -> adapter.Turn:
    text = infos["observation"]
    return adapter.Turn(
      before + text,
      infos["score"],
      invalid=text.startswith("Unknown action"),
      commands=infos["validActions"],
      state=f"{infos['look']}\n{infos['inventory']}",
    )

  def close(self) -> None:
    """Ends the Java process."""
    adapter.end_java(self._env)
