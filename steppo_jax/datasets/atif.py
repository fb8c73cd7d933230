"""Recorded trajectories in ATIF, the form in which Harbor keeps agents' runs.

A dataset is a folder with a folder a split, in which every episode is a file of
JSON, `train/00000.json`. The first step of a document is the prompt that the
policy read at first; each further one is a response, with its token ids and
log-probabilities as `metrics` and with what the environment answered as
`observation`. ATIF has no place for rewards, nor for which tokens are part of a
thought: those of a step stand in `metrics.extra`, rewards of the episode in
`extra`.

Source: the specification of ATIF 1.7 as the package harbor 0.26.0 checks it.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from steppo_jax import types

VERSION = "ATIF-v1.7"


def document(
  trajectory: types.Trajectory, tokenizer: types.Tokenizer
) -> dict[str, Any]:
  """One episode as a document of ATIF.

  Args:
    trajectory: Any, also one that an error ended.
    tokenizer: Makes text of its token ids.
  """
  text = lambda ids: tokenizer.decode(ids).encode("utf-8", "replace").decode()
  steps = trajectory.steps
  first = text(steps[0].prompt_ids) if steps else ""
  told = [{"step_id": 1, "source": "user", "message": first}]
  after = [*(s.prompt_ids for s in steps[1:]), trajectory.final_prompt_ids]
  for number, (step, then) in enumerate(zip(steps, after, strict=False), 2):
    seen = np.concatenate([step.prompt_ids, step.response_ids])
    answer = {
      "step_id": number,
      "source": "agent",
      "message": text(step.response_ids),
      "llm_call_count": 1,
      "metrics": _metrics(step),
    }
    if then is not None:
      # A prompt that was written anew is told whole.
      shared = types.common_prefix(then, seen)
      new = then[shared if shared == len(seen) else 0 :]
      answer["observation"] = {"results": [{"content": text(new)}]}
    told.append(answer)
  return {
    "schema_version": VERSION,
    "session_id": trajectory.uid,
    "trajectory_id": trajectory.uid,
    "agent": {
      "name": "steppo_jax",
      "version": metadata.version("steppo_jax"),
      "extra": {"tokenizer": tokenizer.digest},
    },
    "steps": told,
    "final_metrics": {
      "total_prompt_tokens": sum(len(s.prompt_ids) for s in steps),
      "total_completion_tokens": sum(len(s.response_ids) for s in steps),
      "total_steps": len(told),
    },
    "extra": {
      "task": types.task_to_json(trajectory.task),
      "success": bool(trajectory.success),
      "reward": trajectory.total_reward,
      "scores": dict(trajectory.scores),
      "error": trajectory.error,
      "retried": list(trajectory.retried),
      "terminated": bool(steps) and bool(steps[-1].terminated),
      "truncated": bool(steps) and bool(steps[-1].truncated),
    },
  }


def _listed(mask: np.ndarray | None) -> list[bool] | None:
  return None if mask is None else np.asarray(mask).tolist()


def _metrics(step: types.Step) -> dict[str, Any]:
  return {
    "prompt_tokens": len(step.prompt_ids),
    "completion_tokens": len(step.response_ids),
    "prompt_token_ids": np.asarray(step.prompt_ids).tolist(),
    "completion_token_ids": np.asarray(step.response_ids).tolist(),
    "logprobs": np.asarray(step.behaviour_logp).tolist(),
    "extra": {
      "reward": step.reward,
      "policy_version": step.policy_version,
      "stop_reason": step.stop_reason,
      "response_mask": np.asarray(step.response_mask).tolist(),
      "reasoning_mask": _listed(step.reasoning_mask),
      "metadata": dict(step.metadata),
    },
  }


def write(
  folder: pathlib.Path,
  trajectories: Mapping[str, Sequence[types.Trajectory]],
  tokenizer: types.Tokenizer,
) -> None:
  """Writes episodes into a folder that appears when all of it is there.

  Args:
    folder: The dataset's; it does not exist.
    trajectories: By split, at least one each.
    tokenizer: Makes text of token ids; its digest is kept.

  Raises:
    ValueError: there is nothing to write, or a number that JSON has not.
  """
  if not trajectories or not all(map(len, trajectories.values())):
    raise ValueError(f"{folder.name}: a split is empty, nothing to write")
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  for split, of in trajectories.items():
    (partial / split).mkdir(parents=True)
    for number, one in enumerate(of):
      path = partial / split / f"{number:05d}.json"
      path.write_text(
        json.dumps(document(one, tokenizer), indent=1, allow_nan=False)
      )
  os.rename(partial, folder)
