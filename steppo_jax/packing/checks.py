"""What a trajectory must be to be trained on, and cutting one that is too long.

This module imports no JAX.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from steppo_jax import types


def validate(
  trajectories: Sequence[types.Trajectory], *, vocab_size: int | None = None
) -> None:
  """Refuses records that cannot be trained on.

  Args:
    trajectories: The records.
    vocab_size: Ids that the model knows; None where it is not known.

  Raises:
    ValueError: an episode marked with an error, an empty trajectory or
      prompt, a duplicate trajectory, steps that are missing, doubled or out of
      order, a reward that is no finite float, a log-probability of a sampled
      token that is not finite, or a token id that the model does not know.
  """
  seen = set()
  for trajectory in trajectories:
    uid = trajectory.uid
    if trajectory.error is not None:
      raise ValueError(
        f"trajectory {uid} ended in an error: count it, do not train on it"
      )
    if not trajectory.steps:
      raise ValueError(f"trajectory {uid} has no steps")
    if uid in seen:
      raise ValueError(f"trajectory {uid} appears twice")
    seen.add(uid)
    _check_order(trajectory)
    for index, step in enumerate(trajectory.steps):
      if len(step.prompt_ids) == 0:
        raise ValueError(f"step {index} of trajectory {uid}: empty prompt")
      lengths = {
        len(step.response_ids),
        len(step.response_mask),
        len(step.behaviour_logp),
      }
      if len(lengths) > 1:
        raise ValueError(
          f"step {index} of trajectory {uid}: response_ids, response_mask "
          f"and behaviour_logp have lengths {sorted(lengths)}"
        )
      where = f"step {index} of trajectory {uid}"
      _check_reward(step.reward, where)
      _check_logp(step, where)
      _check_ids(step.prompt_ids, vocab_size, f"{where}: prompt_ids")
      _check_ids(step.response_ids, vocab_size, f"{where}: response_ids")
      is_last = index == len(trajectory.steps) - 1
      if (step.terminated or step.truncated) != is_last:
        raise ValueError(
          f"step {index} of trajectory {uid}: exactly the last step is "
          "terminated or truncated"
        )
    cut = trajectory.steps[-1].truncated
    if cut and trajectory.final_prompt_ids is None:
      raise ValueError(
        f"trajectory {uid} is truncated and has no final_prompt_ids to "
        "bootstrap from"
      )
    if trajectory.final_prompt_ids is not None:
      where = f"trajectory {uid}: final_prompt_ids"
      _check_ids(trajectory.final_prompt_ids, vocab_size, where)


def told_thoughts(trajectories: Sequence[types.Trajectory]) -> None:
  """Refuses steps that do not tell thoughts from actions.

  Raises:
    ValueError: a step has no `reasoning_mask`, or one of another length than
      its response.
  """
  for trajectory in trajectories:
    for step in trajectory.steps:
      where = f"step {step.step_index} of trajectory {trajectory.uid}"
      told, size = step.reasoning_mask, len(step.response_ids)
      if told is not None and len(told) != size:
        raise ValueError(
          f"{where}: reasoning_mask has {len(told)} entries for {size} tokens "
          "of the response"
        )
      if told is None:
        raise ValueError(
          f"{where} has no reasoning_mask, which the algorithm weighs tokens "
          "by: the prompt needs a method reasoning(response_ids), and episodes "
          "that an older version recorded have to be played again"
        )


def _check_logp(step: types.Step, where: str) -> None:
  # Those of tokens that the policy did not sample are not read.
  sampled = np.asarray(step.response_mask, bool)
  wrong = np.flatnonzero(sampled & ~np.isfinite(step.behaviour_logp))
  if wrong.size:
    raise ValueError(
      f"{where}: behaviour_logp of token {wrong[0]} is "
      f"{step.behaviour_logp[wrong[0]]}, not finite: look at the weights that "
      "sampled it"
    )


def _check_ids(ids: Sequence[int], vocab_size: int | None, where: str) -> None:
  ids = np.asarray(ids)
  if not ids.size:
    return
  low, high = ids.min(), ids.max()
  if low < 0 or (vocab_size is not None and high >= vocab_size):
    known = "" if vocab_size is None else f", the model knows {vocab_size}"
    raise ValueError(
      f"{where} holds the token id {low if low < 0 else high}{known}: take the "
      "tokenizer of the model"
    )


def _check_order(trajectory: types.Trajectory) -> None:
  """Steps are numbered 0, 1, 2, ... in order, each once."""
  uid = trajectory.uid
  for step in trajectory.steps:
    if step.trajectory_uid != uid:
      raise ValueError(
        f"step {step.step_index} of trajectory {step.trajectory_uid} lies in "
        f"trajectory {uid}"
      )
  found = [step.step_index for step in trajectory.steps]
  wanted = range(len(found))
  if found == list(wanted):
    return
  doubled = [k for k in sorted(set(found)) if found.count(k) > 1]
  missing = [k for k in wanted if k not in found]
  fault = "they are out of order"
  if doubled:
    fault = f"{doubled} appear more than once"
  elif missing:
    fault = f"{missing} are missing"
  raise ValueError(
    f"steps of trajectory {uid} are numbered {found}: {fault}; they must run "
    "from 0 without a gap"
  )


def _check_reward(reward: float, where: str) -> None:
  # A whole number is more often an id or a count than a reward.
  if not isinstance(reward, float | np.floating):
    raise ValueError(
      f"{where}: reward {reward!r} is of type {type(reward).__name__}: rewards "
      "are floats"
    )
  if not abs(reward) <= types.LARGEST_REWARD:  # Nor is a NaN.
    raise ValueError(f"{where}: reward {reward} is not finite in float32")


def fit(
  trajectories: Sequence[types.Trajectory], longest: int
) -> tuple[list[types.Trajectory | None], int]:
  """Cuts trajectories before the first step that is too long for a row.

  The step before the cut becomes the last one and is marked as truncated; the
  prompt of the first step that is left out is what its value bootstraps from.
  Where that prompt is itself too long, the cut moves one step to the front.

  Args:
    trajectories: Valid trajectories.
    longest: Most tokens of a prompt with its response.

  Returns:
    The trajectories in their order, None where no step is left, and the number
    of them that were changed.
  """
  kept = [_cut(trajectory, longest) for trajectory in trajectories]
  changed = sum(a is not b for a, b in zip(kept, trajectories, strict=True))
  return kept, changed


def _cut(trajectory, longest):
  steps, final = trajectory.steps, trajectory.final_prompt_ids
  sizes = [len(s.prompt_ids) + len(s.response_ids) for s in steps]
  if max(sizes) <= longest and (final is None or len(final) <= longest):
    return trajectory
  # Prompts that can follow step 0, 1, 2, ...
  after = [*(s.prompt_ids for s in steps[1:]), final]
  keep = next((k for k, n in enumerate(sizes) if n > longest), len(steps))
  while keep and (after[keep - 1] is None or len(after[keep - 1]) > longest):
    keep -= 1
  if not keep:
    return None
  last = dataclasses.replace(steps[keep - 1], terminated=False, truncated=True)
  return dataclasses.replace(
    trajectory,
    steps=(*steps[: keep - 1], last),
    final_prompt_ids=after[keep - 1],
  )
