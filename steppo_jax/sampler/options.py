"""Options of the sampler."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """Shapes of the sampler, which has eight programs at most.

  Attributes:
    num_slots: Trajectories that one process samples side by side. Its devices
      split them into equal parts, so that a multiple of the number of devices
      uses all of them; on a CPU a part has eight slots at least. A run of P
      processes samples P times as many.
    prefill_lengths: Sizes into which runs of new prompt tokens are cut,
      ascending; longer prompts are read in several runs. From a context of
      1,024 tokens on there is a size of 512, too.
    refill: Responses that must have ended before their slots are given new
      work; 0 for an eighth of the slots.
    burst: Tokens after which requests that came meanwhile are taken in, even
      if no response has ended.
    keep_cache_across_versions: What an episode that goes on after its sampler
      got other weights (`rollout.staleness`) has of its earlier tokens. False
      reads them anew with the new weights, so that each token is sampled by one
      policy. True keeps the keys and values that earlier weights made, which
      saves the reading: the log-probs that are reported are those of the
      sampling, and no single policy of the learner has them. Episodes that
      begin later share nothing of it.
    tensor: Devices that share one copy of the weights and the cache of the
      slots that they sample in, for a model that is too large for one of them.
      It divides the model's heads and inner width, and divides its key heads or
      is a multiple of them.
    attention: How new tokens attend to what their slots hold. "xla" is a loop
      over blocks of all slots, up to the longest. "pallas" is JAX's kernel for
      TPUs (`ragged_paged_attention`), which reads each slot up to its own
      length and takes heads of a multiple of 128 numbers. "auto" is "pallas"
      on a TPU if it takes the model, and "xla" everywhere else.
  """

  num_slots: int = 128
  prefill_lengths: tuple[int, ...] = (8, 16, 32, 64)
  refill: int = 0
  burst: int = 64
  keep_cache_across_versions: bool = False
  tensor: int = 1
  attention: Literal["auto", "xla", "pallas"] = "auto"

  def __post_init__(self):
    for name, least in (
      ("num_slots", 1), ("refill", 0), ("burst", 1), ("tensor", 1)
    ):  # fmt: skip
      if getattr(self, name) < least:
        raise ValueError(
          f"sampler.{name}={getattr(self, name)} must be at least {least}"
        )
    lengths = self.prefill_lengths
    if not lengths or list(lengths) != sorted({n for n in lengths if n > 0}):
      raise ValueError(
        f"sampler.prefill_lengths={lengths} must be positive and ascending"
      )
