"""Options of rollouts: the limits of an episode."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Limits of an episode.

  Attributes:
    max_steps: Steps after which an episode is truncated.
    max_tokens: Length in tokens that prompt and response may reach together;
      an episode that cannot take another step is truncated.
    max_new_tokens: Longest response in tokens.
    temperature: Softmax temperature; 0 is greedy.
    env_threads: Threads that step environments while the sampler goes on; 0
      steps them between two calls of the sampler, in an order that is the same
      in every run. Worth it for environments that wait for something.
    max_live: Most episodes under way at once; None for as many as the sampler
      has slots.
    retries: Times that an episode whose environment failed is played again
      before it counts as an error: from its start, with the same key, so that
      the same episode comes of it. Without them an environment that fails now
      and then loses long episodes more often than short ones.
    staleness: Most updates between the weights that sample a token and the
      update that trains it. 0 plays and learns in turns. From 1 on rollouts go
      on while the learner works (asynchronous training, `training.ahead`):
      worth it where environments are slow, or devices idle otherwise. No
      episode is thrown away, whatever the number.
  """

  max_steps: int = 15
  max_tokens: int = 256
  max_new_tokens: int = 12
  temperature: float = 1.0
  env_threads: int = 0
  max_live: int | None = None
  retries: int = 0
  staleness: int = 0

  def __post_init__(self):
    if self.max_live is not None and self.max_live < 1:
      raise ValueError(f"rollout.max_live={self.max_live} must be at least 1")
    if self.retries < 0:
      raise ValueError(f"rollout.retries={self.retries} must be at least 0")
    if self.staleness < 0:
      raise ValueError(f"rollout.staleness={self.staleness} must be at least 0")
