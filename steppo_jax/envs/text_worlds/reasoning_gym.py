"""reasoning-gym: questions that are generated and answers that are checked.

Source: Stojanovski et al. 2025, arXiv:2505.24760.
"""

from collections.abc import Sequence

from steppo_jax.envs import guides, seeds
from steppo_jax.envs.text_worlds import adapter

GUIDE = guides.Guide(
  part="You answer one question.",
  answer="Answer with the answer and nothing else.",
  tools=guides.env_step("gives the answer", "42"),
  unwrap="env_step",
)

# What nobody should be paid for.
_NONSENSE = "I do not know"


class ReasoningGym(adapter.TextWorld):
  """One question an episode, from one of several sets.

  Args:
    sets: Names of the package's data sets, or one name.
    partial_credit: Pays what the package's scorer says, which is above 0 for
      some wrong answers, by the set 0.01 to 0.25 even for nonsense. Without it
      an answer is right (1) or not (0).
    invalid_penalty: See `adapter.TextWorld`; an answer is refused where the
      scorer raises an error on it.

  Raises:
    ValueError: an unknown set, or one whose scorer pays in full for nonsense.
  """

  def __init__(
    self,
    *,
    sets: str | Sequence[str] = "leg_counting",
    partial_credit: bool = False,
    invalid_penalty: float = 0.0,
  ):
    super().__init__(invalid_penalty)
    made = adapter.package("reasoning_gym", "reasoning_gym")
    self._make, self._partial = made.create_dataset, partial_credit
    self._sets = [sets] if isinstance(sets, str) else list(sets)
    for name in self._sets:
      adapter.one_of("sets", name, made.factory.DATASETS)
      if self._grade(*self._question(name, 0), _NONSENSE)[0] >= 1:
        raise ValueError(
          f"env.options: sets={name} pays in full for {_NONSENSE!r}: its "
          "scorer tells nothing apart, take another"
        )

  def _question(self, name: str, seed: int):
    made = self._make(name, seed=seed, size=1)
    return made, made[0]

  def _grade(self, made, entry, answer: str) -> tuple[float, bool]:
    try:
      return float(made.score_answer(answer, entry)), False
    except Exception:
      return 0.0, True

  def begin(self, at: seeds.Place) -> adapter.Turn:
    name = self._sets[at.number % len(self._sets)]
    self._asked = self._question(name, at.seed)
    return adapter.Turn(self._asked[1]["question"], 0.0)

  def play(self, command: str) -> adapter.Turn:
    score, refused = self._grade(*self._asked, command)
    right = score >= 1
    paid = score if self._partial else float(right)
    text = "Right." if right else "Wrong."
    return adapter.Turn(text, paid, True, right, invalid=refused)
