"""Names the next item of a session, one semantic id token a step.

A step shows which level is to be named, and the answer is one code of it, which
may stand behind a thought. Whether a code was right is not shown: the reward of
a step is 1 if its code is the target's, whatever came before.
"""

from steppo_jax import types
from steppo_jax.envs import calls
from steppo_jax.envs.recommend import worlds as recommend_worlds

INVALID = "That is no code of this level."


class RecommendEnv:
  """A recommendation as one episode; a `types.Env`.

  Args:
    invalid_penalty: Subtracted from the reward of an answer that is no code of
      the level. The episode goes on with the next level.
  """

  def __init__(self, invalid_penalty: float = 0.0):
    self._penalty = invalid_penalty
    self._answers: list[str] = []
    self._right = 0

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    del seed  # A session is whole in its task.
    self._task, self._answers, self._right = task, [], 0
    text = f"Seen: {task.payload['seen']}.\n\n"
    text += f"Your task is to: name the next item.\n{self._ask()}"
    return types.TimeStep(text, 0.0, False, False, self._info(False))

  def step(self, text: str) -> types.TimeStep:
    answer = calls.without_thoughts(text).strip()
    level = len(self._answers)
    valid = answer in self._codes(level)
    right = answer == self._task.payload["target"][level]
    self._right += right
    self._answers.append(answer if valid else "?")
    ended = len(self._answers) == len(self._task.payload["target"])
    reward = float(right) - (0.0 if valid else self._penalty)
    told = "" if valid else f"{INVALID} "
    told += "Thank you." if ended else self._ask()
    return types.TimeStep(told, reward, ended, False, self._info(not valid))

  def close(self) -> None:
    """Nothing is held."""

  def _ask(self) -> str:
    level = len(self._answers)
    letter = recommend_worlds.LETTERS[level]
    return f"Level {level + 1} of {len(self._task.payload['target'])}: {letter}"

  def _codes(self, level: int) -> list[str]:
    codes = range(self._task.payload["codes"])
    return [recommend_worlds.name(level, code) for code in codes]

  def _info(self, invalid: bool):
    levels, level = len(self._task.payload["target"]), len(self._answers)
    return {
      "won": self._right == levels,
      "invalid": invalid,
      "anchor": f"{self._task.uid} {' '.join(self._answers)}",
      "scores": {"right": self._right / levels},
      "commands": self._codes(level) if level < levels else [],
    }
