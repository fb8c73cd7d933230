"""Recorded trajectories as TFDS datasets in RLDS form, or as tables.

The other formats are those of `datasets.tables`, which `load` reads too, and
`datasets.atif`, which it does not. Here an episode is

    uid, env, family     str
    task                 str, JSON of `types.task_to_json`
    success              bool
    error                str, "" where nothing broke it
    record               str, JSON: what else a `types.Trajectory` has
    steps                list, one more than there are actions

and a step `observation` (all that the policy read, as text) and `action` (what
it wrote), `reward`, `is_first`, `is_last` and `is_terminal` as RLDS has them,
and `record`: JSON with the token ids, the log-probabilities and the rest of a
`types.Step`. The last step has no action: its observation is the prompt that a
truncated episode would have gone on from, "" otherwise. `load` gives back the
very trajectories that were written.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from steppo_jax import types
from steppo_jax.datasets import atif, store, tables
from steppo_jax.storage import labels as labels_lib

_log = logging.getLogger(__name__)

_KIND = "trajectories"
_ARRAYS = {
  "prompt_ids": np.int32,
  "response_ids": np.int32,
  "response_mask": np.bool_,
  "behaviour_logp": np.float32,
  "reasoning_mask": np.bool_,
}
# What `behaviour_logp` was called in datasets that are read still.
_OLD_LOGP = "rollout_logprobs"
# Fields of a step that the trajectory or its order says already.
_IMPLIED = ("trajectory_uid", "step_index", "group_uid")


class TrajectorySet(store.Builder):
  """Episodes that a policy played, with the tokens that it read and wrote."""

  FEATURES: ClassVar = {
    "uid": tfds.features.Text(),
    "env": tfds.features.Text(),
    "family": tfds.features.Text(),
    "task": tfds.features.Text(),
    "success": np.bool_,
    "error": tfds.features.Text(),
    "record": tfds.features.Text(),
    "steps": tfds.features.Dataset(
      {
        "observation": tfds.features.Text(),
        "action": tfds.features.Text(),
        "reward": np.float32,
        "is_first": np.bool_,
        "is_last": np.bool_,
        "is_terminal": np.bool_,
        "record": tfds.features.Text(),
      }
    ),
  }


# The last is written alone: others read it.
FORMATS = ("tfds", *tables.FORMATS, "atif")


def folder_of(
  output: str | os.PathLike, name: str, form: str = "tfds"
) -> pathlib.Path:
  """Where `write` puts trajectories of a name."""
  if form == "tfds":
    return store.folder_of(TrajectorySet, output, name)
  return pathlib.Path(output).absolute() / name


def check_new(output: str | os.PathLike, name: str, form: str = "tfds") -> None:
  """Refuses a name that cannot be written, before anything is played.

  Raises:
    ValueError: the name is taken, or no name of a folder, or the format is
      none of `FORMATS`.
  """
  if form not in FORMATS:
    raise ValueError(f"format {form!r} is none of {', '.join(FORMATS)}")
  if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
    raise ValueError(f"name {name!r} must be letters, digits, '_', '.' and '-'")
  folder = folder_of(output, name, form)
  taken = folder / store.DIGESTS if form == "tfds" else folder
  if taken.exists():
    raise ValueError(f"{folder} exists: choose another name, or remove it")


def write(
  output: str | os.PathLike,
  name: str,
  trajectories: Mapping[str, Sequence[types.Trajectory]],
  tokenizer: types.Tokenizer,
  form: str = "tfds",
) -> pathlib.Path:
  """Writes trajectories.

  Args:
    output: Folder that holds datasets; it is made.
    name: Of the dataset; letters, digits, "_", "." and "-".
    trajectories: By split, at least one each.
    tokenizer: Makes text of token ids; its digest is kept.
    form: One of `FORMATS`.

  Returns:
    The dataset's folder under `output`.

  Raises:
    ValueError: the name is taken or none, or there is nothing to write; see
      also `tables.write`.
    RuntimeError: see `tables.write`.
  """
  check_new(output, name, form)
  if form != "tfds":
    folder = folder_of(output, name, form)
    if form == "atif":
      atif.write(folder, trajectories, tokenizer)
    else:
      tables.write(folder, trajectories, tokenizer, form)
    return folder
  facts = {
    "kind": _KIND,
    "tokenizer": tokenizer.digest,
    "splits": {split: len(of) for split, of in trajectories.items()},
  }
  splits = {
    split: store.Examples(of, lambda one: _episode(one, tokenizer))
    for split, of in trajectories.items()
  }
  # Whoever plays episodes shows a bar of its own.
  return store.write(
    TrajectorySet, output, store.Contents(name, splits, facts), bar=False
  )


def _episode(trajectory, tokenizer) -> dict[str, Any]:
  task = trajectory.task
  steps = [_step(step, tokenizer) for step in trajectory.steps]
  final = trajectory.final_prompt_ids
  ended = bool(steps) and trajectory.steps[-1].terminated
  steps.append(
    {
      "observation": "" if final is None else tokenizer.decode(final),
      "action": "",
      "reward": 0.0,
      "is_first": not steps,
      "is_last": True,
      "is_terminal": ended,
      "record": "{}",
    }
  )
  record = {
    "final_prompt_ids": None if final is None else final.tolist(),
    "retried": list(trajectory.retried),
    "scores": dict(trajectory.scores),
    "no_error": trajectory.error is None,
  }
  return {
    "uid": trajectory.uid,
    "env": task.env,
    "family": task.family,
    "task": json.dumps(types.task_to_json(task)),
    "success": trajectory.success,
    "error": trajectory.error or "",
    "record": json.dumps(record),
    "steps": steps,
  }


def _step(step, tokenizer) -> dict[str, Any]:
  record = {
    field.name: getattr(step, field.name)
    for field in dataclasses.fields(step)
    if field.name not in _IMPLIED
  }
  for name in _ARRAYS:
    if record[name] is not None:
      record[name] = np.asarray(record[name]).tolist()
  record["metadata"] = dict(record["metadata"])
  return {
    "observation": tokenizer.decode(step.prompt_ids),
    "action": tokenizer.decode(step.response_ids),
    "reward": step.reward,
    "is_first": step.step_index == 0,
    "is_last": False,
    "is_terminal": False,
    "record": json.dumps(record),
  }


def load(
  folder: str | os.PathLike,
  split: str,
  *,
  tokenizer: str | None = None,
  labels: str | os.PathLike | None = None,
) -> Sequence[types.Trajectory]:
  """The trajectories of a split, read from the disk as they are asked for.

  Args:
    folder: What `write` returned.
    split: A split that was written.
    tokenizer: Digest that the token ids must belong to; None takes any.
    labels: Folder of the run whose labels count: the episodes that somebody
      excluded there (`storage.labels`) are left out, and their number is
      logged. None leaves out nothing.

  Raises:
    ValueError: the folder does not hold trajectories, or those of another
      tokenizer, or has no such split; or the labels cannot be read.
    RuntimeError: a file is broken.
  """
  facts = store.facts(folder)
  if facts.get("kind") != _KIND:
    raise ValueError(f"{folder} is a dataset, but not one of trajectories")
  if tokenizer is not None and facts["tokenizer"] != tokenizer:
    raise ValueError(
      f"{folder} was written with tokenizer {facts['tokenizer'][:12]}, this "
      f"one is {tokenizer[:12]}: token ids of one mean nothing to another"
    )
  left_out = frozenset()
  if labels is not None:
    left_out = labels_lib.excluded(labels, split)
  found = _open(folder, split, facts)
  if not left_out:
    return found
  kept = [i for i, one in enumerate(found) if one.uid not in left_out]
  _log.info("%d episodes of %s excluded", len(found) - len(kept), folder)
  return store.Examples(kept, found.__getitem__)


def _open(
  folder: str | os.PathLike, split: str, facts: Mapping[str, Any]
) -> Sequence[types.Trajectory]:
  form = facts.get("format")
  if form is None:
    return store.read(folder, split, _trajectory)
  store.verify(folder)
  if split not in facts["splits"]:
    known = ", ".join(facts["splits"])
    raise ValueError(f"{folder} has no split {split!r}; it has {known}")
  return tables.load_file(pathlib.Path(folder) / f"{split}.{form}")


def _trajectory(raw) -> types.Trajectory:
  uid = raw["uid"].decode()
  task = types.task_from_json(json.loads(raw["task"]))
  record = json.loads(raw["record"])
  steps = []
  for index, step in enumerate(list(raw["steps"])[:-1]):
    fields = json.loads(step["record"])
    if _OLD_LOGP in fields:
      fields["behaviour_logp"] = fields.pop(_OLD_LOGP)
    for name, dtype in _ARRAYS.items():
      if fields.get(name) is not None:
        fields[name] = np.asarray(fields[name], dtype)
    steps.append(
      types.Step(
        **fields, trajectory_uid=uid, step_index=index, group_uid=task.uid
      )
    )
  final = record["final_prompt_ids"]
  return types.Trajectory(
    uid,
    task,
    tuple(steps),
    None if final is None else np.asarray(final, np.int32),
    bool(raw["success"]),
    None if record["no_error"] else raw["error"].decode(),
    tuple(record["retried"]),
    record["scores"],
  )
