"""Prompts: how what an environment says becomes token ids.

A prompt is extended by token ids and never encoded again, so that what the
policy reads at turn k + 1 starts with exactly what it read and wrote at turn k.
"""

import dataclasses

import numpy as np

from steppo_jax import types

_BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"


@dataclasses.dataclass(frozen=True)
class CompactPrompt:
  """Append-only prompts for small models: observation and action in turn.

      <bos> observation <end> action <end> observation <end> action <end> ...

  The first observation already names the task.

  Attributes:
    tokenizer: Its end-of-turn id closes both kinds of turn.
  """

  tokenizer: types.Tokenizer

  def first(self, observation: str) -> np.ndarray:
    """Prompt of the first step: [P] int32."""
    tokenizer = self.tokenizer
    ids = tokenizer.encode(observation.removeprefix(_BANNER))
    return _ids([tokenizer.bos_id], ids, [tokenizer.end_of_turn_id])

  def extend(
    self, prompt_ids: np.ndarray, response_ids: np.ndarray, observation: str
  ) -> np.ndarray:
    """Prompt of the next step: the last one, its response, what followed."""
    end = self.tokenizer.end_of_turn_id
    # A response cut off by the limit is closed here, outside its action.
    closed = len(response_ids) > 0 and response_ids[-1] == end
    ids = self.tokenizer.encode(observation)
    return _ids(prompt_ids, response_ids, [] if closed else [end], ids, [end])

  def action(self, response_ids: np.ndarray) -> str:
    """The command that a response spells."""
    return self.tokenizer.decode(response_ids).strip()

  def response(self, action: str) -> np.ndarray:
    """The ids that spell a command, for demonstrations."""
    ids = self.tokenizer.encode(action)
    return _ids(ids, [self.tokenizer.end_of_turn_id])


def _ids(*parts) -> np.ndarray:
  return np.concatenate([np.asarray(p, np.int32) for p in parts])
