"""TextArena's games for one player.

Source: Guertler et al. 2025, arXiv:2504.11442.
"""

import contextlib
import numbers
import random
import threading

from steppo_jax.envs import guides, seeds
from steppo_jax.envs.text_worlds import adapter

GUIDE = guides.Guide(
  part="You play a game. Its first text says how, and how moves are written.",
  answer="Answer with one move, in square brackets.",
  tools=guides.env_step("makes one move", "[10]"),
  unwrap="env_step",
)

# Its games draw from the one generator of the process as they go on.
_GENERATOR = threading.Lock()


class TextArena(adapter.TextWorld):
  """Plays one game; its reward is told when it ends.

  Args:
    game: The package's name, such as "GuessTheNumber-v0", of a game that one
      plays and that needs no download.
    invalid_penalty: See `adapter.TextWorld`.
  """

  def __init__(
    self, *, game: str = "GuessTheNumber-v0", invalid_penalty: float = 0.0
  ):
    super().__init__(invalid_penalty)
    package = adapter.package("textarena", "textarena")
    self._single = package.SinglePlayerState
    # "-raw" has no wrappers, which would say the whole history at every step.
    try:
      self._env = package.make(f"{game}-raw")
    except Exception as error:
      raise ValueError(
        f"env.options: game={game!r} cannot be made by TextArena on this "
        f"Python and without downloads: {type(error).__name__}: {error}"
      ) from error
    self._game, self._random = game, None

  @contextlib.contextmanager
  def _own_random(self):
    with _GENERATOR:
      before = random.getstate()
      if self._random is not None:
        random.setstate(self._random)
      try:
        yield
      finally:
        self._random = random.getstate()
        random.setstate(before)

  def begin(self, at: seeds.Place) -> adapter.Turn:
    with self._own_random():
      self._env.reset(num_players=1, seed=at.seed)
    if not isinstance(self._env.state, self._single):
      raise ValueError(f"env.options: game={self._game!r} is for more players")
    return adapter.Turn(self._heard(), 0.0)

  def play(self, command: str) -> adapter.Turn:
    with self._own_random():
      over, _ = self._env.step(command)
    state, paid = self._env.state, 0.0
    if over:
      paid = (self._env.close()[0] or {}).get(0)
      # Some games have the text of a refusal where its reward should be.
      paid = paid if isinstance(paid, numbers.Real) else 0.0
    refused = state.error_count > 0 or state.game_info[0]["invalid_move"]
    return adapter.Turn(self._heard(), paid, over, paid >= 1, invalid=refused)

  def _heard(self) -> str:
    """What the game itself has said; some mix up what the player said."""
    _, messages = self._env.get_observation()
    own = [text for who, text, _ in messages if who == -1]
    return "\n".join(text for text in own if isinstance(text, str))
