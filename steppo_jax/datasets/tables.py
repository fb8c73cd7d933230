"""Recorded trajectories as Parquet or JSON lines, which other tools read.

A dataset is a folder with one file a split, `train.parquet` or `train.jsonl`,
and a `README.md` that names the splits, as the Hub of Hugging Face has them:
`datasets.load_dataset(folder)` reads it. A row is an episode:

    uid, env, family   str
    tokenizer          str, digest of the tokenizer that the ids belong to
    task               str, JSON of `types.task_to_json`
    success            bool
    error              str, None where nothing broke it
    retried            list of str
    scores             str, JSON
    final_prompt_ids   list of int32, None where the episode terminated
    steps              list of structs

and a step has `prompt` and `response` (text, to be looked at), `prompt_ids`,
`response_ids` (int32), `response_mask`, `reasoning_mask` (bool; the latter may
be None), `behaviour_logp` (float32), `reward` (float64), `policy_version`,
`terminated`, `truncated`, `stop_reason`, `anchor_obs`, and `metadata` (str,
JSON). What has other keys from row to row is JSON, so that all rows have one
type. Everything but the texts of prompts and responses comes back bit by bit.
"""

import importlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.datasets import store

FORMATS = ("parquet", "jsonl")
# Arrays of a step; the last may be None.
_ARRAYS = {
  "prompt_ids": np.int32,
  "response_ids": np.int32,
  "response_mask": np.bool_,
  "behaviour_logp": np.float32,
  "reasoning_mask": np.bool_,
}
_PLAIN = (
  "reward", "policy_version", "terminated", "truncated", "stop_reason",
  "anchor_obs",
)  # fmt: skip
# Episodes that are held as a table at once.
_BATCH = 64


def _package(name: str):
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise RuntimeError(
      f"Parquet needs PyArrow ({error}): pip install 'steppo_jax[parquet]', or "
      "take jsonl"
    ) from error


def _schema():
  arrow = _package("pyarrow")
  numbers = lambda kind: arrow.list_(kind)
  text, flag = arrow.string(), arrow.bool_()
  ids, mask = numbers(arrow.int32()), numbers(flag)
  step = arrow.struct({
    "prompt": text, "response": text, "prompt_ids": ids, "response_ids": ids,
    "response_mask": mask, "behaviour_logp": numbers(arrow.float32()),
    "reasoning_mask": mask, "reward": arrow.float64(),
    "policy_version": arrow.int64(), "terminated": flag, "truncated": flag,
    "stop_reason": text, "anchor_obs": text, "metadata": text,
  })  # fmt: skip
  return arrow.schema({
    "uid": text, "env": text, "family": text, "tokenizer": text, "task": text,
    "success": flag, "error": text, "retried": arrow.list_(text),
    "scores": text, "final_prompt_ids": ids, "steps": arrow.list_(step),
  })  # fmt: skip


def write(
  folder: pathlib.Path,
  trajectories: Mapping[str, Sequence[types.Trajectory]],
  tokenizer: types.Tokenizer,
  form: str,
) -> None:
  """Writes trajectories into a folder that appears when all of it is there.

  Args:
    folder: The dataset's; it does not exist.
    trajectories: By split, at least one each.
    tokenizer: Makes text of token ids; its digest is kept.
    form: One of `FORMATS`.

  Raises:
    ValueError: there is nothing to write, or a number or a text that the format
      cannot hold.
    RuntimeError: PyArrow is missing, or a file holds other rows than were
      written.
  """
  if not trajectories or not all(map(len, trajectories.values())):
    raise ValueError(f"{folder.name}: a split is empty, nothing to write")
  partial = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  names = {split: f"{split}.{form}" for split in trajectories}
  for split, of in trajectories.items():
    path = partial / names[split]
    rows = (_row(one, tokenizer) for one in of)
    (_write_parquet if form == "parquet" else _write_lines)(path, rows)
    found = len(rows_of(path))
    if found != len(of):
      raise RuntimeError(f"{path} holds {found} of {len(of)} episodes")
  (partial / "README.md").write_text(_card(names))
  facts = {
    "kind": "trajectories", "format": form, "tokenizer": tokenizer.digest,
    "splits": {split: len(of) for split, of in trajectories.items()},
  }  # fmt: skip
  (partial / store.FACTS).write_text(json.dumps(facts, indent=1))
  store.seal(partial)
  os.rename(partial, folder)


def _card(names: Mapping[str, str]) -> str:
  files = "".join(
    f"  - split: {split}\n    path: {name}\n" for split, name in names.items()
  )
  return (
    "---\nconfigs:\n- config_name: default\n  data_files:\n"
    f"{files}---\n\nEpisodes that were recorded by `steppo_jax`; what a row "
    "holds is written in\n`steppo_jax/datasets/tables.py`.\n"
  )


def _row(trajectory, tokenizer) -> dict[str, Any]:
  task, final = trajectory.task, trajectory.final_prompt_ids
  return {
    "uid": trajectory.uid,
    "env": task.env,
    "family": task.family,
    "tokenizer": tokenizer.digest,
    "task": json.dumps(types.task_to_json(task)),
    "success": bool(trajectory.success),
    "error": trajectory.error,
    "retried": list(trajectory.retried),
    "scores": json.dumps(dict(trajectory.scores)),
    "final_prompt_ids": None if final is None else np.asarray(final).tolist(),
    "steps": [_step(step, tokenizer) for step in trajectory.steps],
  }


def _step(step, tokenizer) -> dict[str, Any]:
  shown = lambda ids: tokenizer.decode(ids).encode("utf-8", "replace").decode()
  made = {
    "prompt": shown(step.prompt_ids), "response": shown(step.response_ids)
  }  # fmt: skip
  for name, kind in _ARRAYS.items():
    array = getattr(step, name)
    made[name] = None if array is None else np.asarray(array, kind).tolist()
  made |= {name: getattr(step, name) for name in _PLAIN}
  return made | {"metadata": json.dumps(dict(step.metadata))}


def _write_parquet(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> None:
  arrow, parquet = _package("pyarrow"), _package("pyarrow.parquet")
  schema = _schema()
  with parquet.ParquetWriter(path, schema) as writer:
    while batch := [row for row, _ in zip(rows, range(_BATCH), strict=False)]:
      try:
        writer.write_table(arrow.Table.from_pylist(batch, schema))
      except (UnicodeEncodeError, arrow.ArrowException) as error:
        uids = f"{batch[0]['uid']} to {batch[-1]['uid']}"
        raise ValueError(f"episodes {uids} do not fit: {error}") from error


def _write_lines(path: pathlib.Path, rows: Iterator[dict[str, Any]]) -> None:
  with open(path, "w", encoding="ascii") as file:
    for row in rows:
      try:
        file.write(json.dumps(row, allow_nan=False) + "\n")
      except ValueError as error:
        raise ValueError(
          f"episode {row['uid']} holds a number that JSON has not: take parquet"
        ) from error


class _Table(Sequence):
  """The rows of a Parquet file."""

  def __init__(self, path: pathlib.Path):
    try:
      self._table = _package("pyarrow.parquet").read_table(path)
    except _package("pyarrow").ArrowException as error:
      raise RuntimeError(f"{path} is broken: {error}") from error

  def __len__(self):
    return self._table.num_rows

  def __getitem__(self, index):
    return self._table.slice(index, 1).to_pylist()[0]


class _Lines(Sequence):
  """The rows of a file of JSON lines."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._lines = [line for line in path.read_bytes().split(b"\n") if line]

  def __len__(self):
    return len(self._lines)

  def __getitem__(self, index):
    try:
      return json.loads(self._lines[index])
    except ValueError as error:
      raise RuntimeError(
        f"{self._path}: line {index + 1} is broken: {error}"
      ) from error


def rows_of(path: pathlib.Path) -> Sequence[dict[str, Any]]:
  """The rows of one file, by the ending of its name.

  Raises:
    ValueError: another ending.
    RuntimeError: PyArrow is missing, or the file is broken.
  """
  if path.suffix == ".parquet":
    return _Table(path)
  if path.suffix == ".jsonl":
    return _Lines(path)
  raise ValueError(f"{path} ends in neither .parquet nor .jsonl")


def load_file(path: str | os.PathLike) -> Sequence[types.Trajectory]:
  """The trajectories of one file, also of one that another tool has written.

  Such a tool may have other types of the same numbers (int64, float64) and
  leave columns out that have a default, or add some.

  Raises:
    ValueError: see `rows_of`, or a row without a column that is needed.
    RuntimeError: see `rows_of`.
  """
  return store.Examples(rows_of(pathlib.Path(path)), trajectory_of)


def trajectory_of(row: Mapping[str, Any]) -> types.Trajectory:
  """The trajectory of a row, as `rows_of` gives it.

  Raises:
    ValueError: a column that is needed is missing.
  """
  try:
    task = types.task_from_json(json.loads(row["task"]))
    final = row["final_prompt_ids"]
    return types.Trajectory(
      row["uid"],
      task,
      tuple(
        _step_of(step, row["uid"], index, task.uid)
        for index, step in enumerate(row["steps"])
      ),
      None if final is None else np.asarray(final, np.int32),
      bool(row["success"]),
      row.get("error"),
      tuple(row.get("retried") or ()),
      json.loads(row.get("scores") or "{}"),
    )
  except KeyError as error:
    raise ValueError(
      f"episode {row.get('uid')} has no column {error}: see the columns in "
      "steppo_jax/datasets/tables.py"
    ) from error


def _step_of(step, uid: str, index: int, group: str) -> types.Step:
  arrays = {
    name: None if step.get(name) is None else np.asarray(step[name], kind)
    for name, kind in _ARRAYS.items()
    if name == "reasoning_mask" or step[name] is not None
  }
  return types.Step(
    **arrays,
    **{name: step[name] for name in _PLAIN},
    metadata=json.loads(step.get("metadata") or "{}"),
    trajectory_uid=uid,
    step_index=index,
    group_uid=group,
  )
