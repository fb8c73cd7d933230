"""One episode as the page shows it, made of the ids of its tokens."""

import functools
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.viewer import credit as credit_lib
from steppo_jax.viewer import index, scenes, sources, tokens
from steppo_jax.viewer import runs as runs_lib

_COLUMNS = "uid, at, split, task, place, name, verdict, note"
_credits = credit_lib.Reader()


def detail(run: runs_lib.Run, number: int) -> dict[str, Any]:
  """Everything that is known of an episode, JSON-able.

  Of every prompt only what is new is told: `shared` tokens are those of the
  step before, its prompt and its response one behind the other. So all prompts
  can be put together as the policy read them.

  Args:
    run: The run that it belongs to.
    number: Its number in the index.

  Raises:
    LookupError: there is no such episode, or its record is gone.
  """
  row = _row(run, number)
  trajectory = read(run, number)
  made = {
    "id": number,
    "run": run.number,
    "uid": trajectory.uid,
    "at": row["at"],
    "split": row["split"],
    "source": row["name"],
    "task": types.task_to_json(trajectory.task),
    "success": bool(trajectory.success),
    "error": trajectory.error,
    "retried": list(trajectory.retried),
    "scores": plain(dict(trajectory.scores)),
    "reward": number_of(trajectory.total_reward),
    "verdict": row["verdict"] or "",
    "note": row["note"] or "",
    "without_text": run.without_text,
    **_steps(trajectory, run.pieces, row["at"]),
  }
  return made | {"credit": _credit(run, trajectory.uid, row["at"])}


def read(run: runs_lib.Run, number: int) -> types.Trajectory:
  """The record of an episode.

  Raises:
    LookupError: there is none any more.
  """
  row = _row(run, number)
  source = run.index.source(row["name"])
  gone = LookupError(
    f"{row['name']} is gone: keep_journals says for how many updates a run "
    "keeps its journals, and record_every writes datasets"
  )
  if source is None:
    raise gone
  try:
    found = _loaded(source, source.identity, row["place"])
  except FileNotFoundError as error:
    raise gone from error
  except (ValueError, RuntimeError, OSError, IndexError) as error:
    raise LookupError(f"{row['name']} cannot be read: {error}") from error
  if index.clean(found.uid) != row["uid"]:
    raise LookupError(f"{row['name']} has changed: load the page again")
  return found


def _row(run, number: int) -> dict[str, Any]:
  rows = run.index.query(
    "SELECT episodes.uid, at, episodes.split, task, place, name, verdict, note "
    "FROM episodes JOIN files ON files.id = file LEFT JOIN labels ON "
    "labels.uid = episodes.uid AND labels.split = episodes.split "
    "WHERE episodes.id = ?",
    number,
  )
  if not rows:
    raise LookupError(
      f"there is no episode {number} any more: its journal was removed, or the "
      "index was made anew"
    )
  return dict(zip(_COLUMNS.split(", "), rows[0], strict=True))


@functools.lru_cache(maxsize=64)
def _loaded(source: sources.Source, identity: str, place: int):
  return sources.load(source, place)


def _steps(
  trajectory: types.Trajectory, pieces: tokens.Pieces, update: int | None
) -> dict[str, Any]:
  before, made = np.zeros(0, np.int32), []
  for step in trajectory.steps:
    thoughts = step.reasoning_mask
    response = _piece(step.response_ids, pieces)
    made.append({
      **_read(trajectory, step.prompt_ids, before, pieces, _text(response)),
      "response": response,
      "logp": credit_lib.numbers(np.asarray(step.behaviour_logp, np.float32)),
      "sampled": np.asarray(step.response_mask, bool).tolist(),
      "thought": None if thoughts is None else np.asarray(thoughts).tolist(),
      "reward": number_of(step.reward),
      "version": step.policy_version,
      "staleness": None if update is None else update - step.policy_version,
      "stop": step.stop_reason,
      "terminated": bool(step.terminated),
      "truncated": bool(step.truncated),
      "anchor": step.anchor_obs,
      "metadata": plain(dict(step.metadata)),
    })  # fmt: skip
    before = np.concatenate([step.prompt_ids, step.response_ids])
  final = trajectory.final_prompt_ids
  after = None if final is None else _read(trajectory, final, before, pieces)
  return {"steps": made, "after": after}


def _read(trajectory, ids, before, pieces, answer="") -> dict[str, Any]:
  """A prompt, and the view of what it shows."""
  prompt = _new(ids, before, pieces)
  # One that was written anew may share a part of what was seen.
  extends = prompt["shared"] == len(before)
  seen = _text(prompt if extends else _piece(ids, pieces))
  scene = scenes.of_step(trajectory.task.env, seen, answer)
  return {"prompt": prompt, "scene": scene}


def _new(ids, before, pieces) -> dict[str, Any]:
  shared = types.common_prefix(ids, before)
  return {"shared": shared, "length": len(ids)} | _piece(ids[shared:], pieces)


def _piece(ids, pieces: tokens.Pieces) -> dict[str, Any]:
  shown = pieces.shown(ids)
  return {
    "ids": np.asarray(ids).tolist(),
    "texts": shown.texts,
    "controls": shown.controls,
  }


def _text(piece) -> str:
  """What a piece says, without its control tokens."""
  controls = set(piece["controls"])
  texts = enumerate(piece["texts"])
  return "".join("\n" if at in controls else text for at, text in texts)


def _credit(run, uid: str, update: int | None) -> dict[str, Any]:
  """The credit of an episode, or why there is none."""
  if update is None or not run.path.is_dir():
    return {"why": "nobody says for which update it was played"}
  try:
    found = _credits.of(run.credit.path(update), uid)
  except ValueError as error:
    return {"why": str(error), "can": True}
  if found is not None:
    return found
  if run.credit.path(update).is_file():
    return {"why": f"update {update} was not trained on this episode"}
  return {"why": "not computed yet", "can": True}


def number_of(value: float) -> float | None:
  """A number as JSON has it: None where it is not finite."""
  value = float(value)
  return value if abs(value) < float("inf") else None


def plain(value: Any) -> Any:
  """Data that JSON has, without numbers that are not finite."""
  if isinstance(value, dict):
    return {str(name): plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, float):
    return number_of(value)
  if value is None or isinstance(value, bool | int | str):
    return value
  return str(value)
