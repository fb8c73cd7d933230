"""What one update took: speeds, shares and counters."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steppo_jax import types
from steppo_jax.packing import rows as packing


class Times(NamedTuple):
  """Readings of one clock, in seconds.

  Attributes:
    started: Before the first episode.
    rolled: After the last.
    learned: After the learner's update.
  """

  started: float
  rolled: float
  learned: float


def of_update(
  times: Times,
  packed: packing.Packed,
  trajectories: Sequence[types.Trajectory],
  *,
  ahead: bool,
) -> dict[str, float]:
  """Seconds, tokens and episodes a second, and how well rows were used.

  Args:
    times: When the parts of the update ended.
    packed: The episodes.
    trajectories: All that were played.
    ahead: Whether rollouts go on while the learner works. `time/rollout_s` is
      then what the learner waited for them, and episodes a second are those
      that the whole update got through.
  """
  played = (times.learned if ahead else times.rolled) - times.started
  return {
    "time/rollout_s": times.rolled - times.started,
    "time/learn_s": times.learned - times.rolled,
    "rollout/episodes_per_s": len(trajectories) / played,
    "tokens_per_s": packed.unique_tokens / (times.learned - times.started),
    "batch/unique_over_row_tokens": packed.unique_tokens / packed.row_tokens,
    "batch/cut_trajectories": packed.cut,
    "batch/row_use": packed.unique_tokens
    / (int(packed.rows_used.sum()) * packed.tokens.tokens.shape[-1]),
  }


def of_sampler(
  since: Mapping[str, int], num_slots: int, packed: packing.Packed
) -> dict[str, Any]:
  """What the sampler read for one update's episodes.

  Rollouts that go on while the learner works read for later ones as well: all
  that they read since the update before is counted.

  Args:
    since: What its counters counted.
    num_slots: Of the sampler.
    packed: The episodes.
  """
  reads = since["prefill_tokens"] + since["decode_tokens"]
  slot_steps = since["decode_steps"] * num_slots
  return {f"sampler/{name}": value for name, value in since.items()} | {
    # 1 if the decoder ran once on every token that is stored.
    "sampler/reads_over_unique": reads / packed.unique_tokens,
    "sampler/slot_use": since["decode_tokens"] / max(slot_steps, 1),
  }


def of_waits(
  before: Mapping[tuple[str, str], float],
  after: Mapping[tuple[str, str], float],
) -> dict[str, float]:
  """Seconds for which learner and rollouts waited for each other, or others.

  Args:
    before: `waits.took` at the begin of an update.
    after: At its end.

  Returns:
    By `wait/WHO_for_WHOM_s`. A wait counts with the update in which it ended.
  """
  return {
    f"wait/{who}_for_{whom}_s": seconds - before.get((who, whom), 0.0)
    for (who, whom), seconds in sorted(after.items())
  }
