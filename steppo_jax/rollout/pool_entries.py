"""What a pool holds: listed, labelled, excluded, counted.

This module imports no JAX.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steppo_jax import types
from steppo_jax.rollout import codec
from steppo_jax.rollout import pool as pool_lib

_COLUMNS = (
  "uid", "state", "cause", "attempts", "version", "success", "reward", "steps",
)  # fmt: skip


class Entry(NamedTuple):
  """An episode as the pool lists it.

  Attributes:
    uid: Its unique name.
    state: Where it is.
    cause: Why it failed, None if it did not.
    attempts: How often it was begun.
    version: Updates behind the newest weights that it was sampled with.
    success: Whether the task was solved.
    reward: The sum of its rewards.
    steps: Their number.
    group: Name of its group.
    channel: What it is for.
    task: What was to be done.
    labels: By name, as they were given.
    notes: Text, as it was given.
  """

  uid: str
  state: pool_lib.State
  cause: str | None
  attempts: int
  version: int | None
  success: bool | None
  reward: float | None
  steps: int | None
  group: str
  channel: pool_lib.Channel
  task: types.Task
  labels: Mapping[str, str]
  notes: str


def has(pool: pool_lib.Pool, uid: str) -> bool:
  """Whether a pool knows of an episode."""
  with pool.file.transaction() as run:
    query = "SELECT 1 FROM episodes WHERE uid = ?"
    return run(query, uid).fetchone() is not None


def label(
  pool: pool_lib.Pool, uids: Sequence[str], labels: Mapping[str, str]
) -> None:
  """Adds labels to episodes.

  Raises:
    ValueError: the pool has no such episode; nothing is changed then.
  """
  with pool.file.transaction() as run:
    for uid in uids:
      row = run("SELECT labels FROM episodes WHERE uid = ?", uid).fetchone()
      if row is None:
        raise ValueError(f"the pool has no episode {uid}")
      run(
        "UPDATE episodes SET labels = ? WHERE uid = ?",
        json.dumps(json.loads(row[0]) | dict(labels)), uid,
      )  # fmt: skip


def exclude(pool: pool_lib.Pool, uids: Sequence[str]) -> None:
  """Keeps episodes from the learner: they count as failed, "excluded".

  Raises:
    ValueError: the pool has no such episode, or it is leased or consumed;
      nothing is changed then.
  """
  with pool.file.transaction() as run:
    for uid in uids:
      row = run(
        "SELECT in_group, state FROM episodes WHERE uid = ?", uid
      ).fetchone()
      if row is None:
        raise ValueError(f"the pool has no episode {uid}")
      if row[1] in ("leased", "consumed"):
        raise ValueError(f"episode {uid} is {row[1]} already")
      run(
        "UPDATE episodes SET state = 'failed', cause = 'excluded', "
        "until = NULL WHERE uid = ? AND state != 'failed'",
        uid,
      )
      pool_lib.complete(run, row[0])


def under_way(pool: pool_lib.Pool) -> list[str]:
  """Uids of the episodes that have not ended, at one moment."""
  with pool.file.transaction() as run:
    rows = run(
      "SELECT uid FROM episodes WHERE state IN ('issued', 'running') "
      "ORDER BY number"
    ).fetchall()
  return [uid for (uid,) in rows]


def entries(
  pool: pool_lib.Pool,
  *,
  task: str | None = None,
  label: tuple[str, str] | None = None,
  version: int | None = None,
  state: pool_lib.State | None = None,
  channel: pool_lib.Channel | None = None,
) -> list[Entry]:
  """Lists episodes in the order in which they were issued.

  Args:
    task: Those of this task, by its uid.
    label: Those with this name and value among their labels.
    version: Those whose newest weights have so many updates behind them.
    state: Those in this state.
    channel: Those of this channel.
  """
  asked = {
    "task_uid": task, "version": version, "state": state, "channel": channel,
  }  # fmt: skip
  where = {name: x for name, x in asked.items() if x is not None}
  given = " AND ".join(["1", *(f"{name} = ?" for name in where)])
  with pool.file.transaction() as run:
    rows = run(
      f"SELECT {', '.join(_COLUMNS)}, name, channel, task, labels, notes "
      "FROM episodes e JOIN groups g ON g.number = in_group "
      f"WHERE {given} ORDER BY e.number",
      *where.values(),
    ).fetchall()
  found = []
  for *plain, group, in_channel, task_text, labels_text, notes in rows:
    labels = json.loads(labels_text)
    if label is not None and labels.get(label[0]) != label[1]:
      continue
    if plain[5] is not None:
      plain[5] = bool(plain[5])
    one = types.task_from_json(json.loads(task_text))
    found.append(Entry(*plain, group, in_channel, one, labels, notes))
  return found


def causes(pool: pool_lib.Pool, uids: Sequence[str]) -> dict[str, str]:
  """Why episodes have failed, by their names; without those that have not."""
  found = {}
  query = "SELECT cause FROM episodes WHERE uid = ? AND state = 'failed'"
  with pool.file.transaction() as run:
    for uid in uids:
      row = run(query, uid).fetchone()
      if row is not None:
        found[uid] = row[0]
  return found


def trajectories(
  pool: pool_lib.Pool, uids: Sequence[str]
) -> list[types.Trajectory]:
  """The records of episodes that have ended; without those that have none."""
  found = []
  with pool.file.transaction() as run:
    for uid in uids:
      row = run("SELECT payload FROM episodes WHERE uid = ?", uid).fetchone()
      if row is not None and row[0] is not None:
        found += codec.from_bytes(row[0])
  return found


class Request(NamedTuple):
  """What an episode was begun for, by the name that a client gave it.

  Attributes:
    digest: Tells requests of one name apart.
    uid: The episode.
    attempt: Which attempt at it; see `pool.Ticket`.
  """

  digest: str
  uid: str
  attempt: int


def request(pool: pool_lib.Pool, name: str) -> Request | None:
  """What `start` was last told of a name, None where it was told nothing."""
  query = "SELECT digest, uid, attempt FROM requests WHERE name = ?"
  with pool.file.transaction() as run:
    row = run(query, name).fetchone()
  return row and Request(*row)


def receipt(pool: pool_lib.Pool, uid: str) -> str | None:
  """What `finish` was given for an episode; None without one."""
  with pool.file.transaction() as run:
    row = run("SELECT receipt FROM episodes WHERE uid = ?", uid).fetchone()
  return row and row[0]


def counts(pool: pool_lib.Pool) -> dict[str, int]:
  """Numbers of episodes by state, and those failed by "failed/CAUSE"."""
  with pool.file.transaction() as run:
    rows = run(
      "SELECT state, cause, count(*) FROM episodes GROUP BY state, cause"
    ).fetchall()
  found: dict[str, int] = dict.fromkeys(pool_lib.STATES, 0)
  for state, cause, count in rows:
    found[state] += count
    if state == "failed":
      found[f"failed/{cause}"] = count
  return found


def to_json(trajectory: types.Trajectory, entry: Entry) -> dict[str, Any]:
  """An episode as JSON-able data: its record, and what was said of it."""
  plain = lambda x: x.tolist() if isinstance(x, np.ndarray) else x
  steps = [
    {
      field.name: plain(getattr(step, field.name))
      for field in dataclasses.fields(step)
      if field.name not in ("trajectory_uid", "group_uid")
    }
    for step in trajectory.steps
  ]
  return {
    "uid": trajectory.uid,
    "group": entry.group,
    "channel": entry.channel,
    "state": entry.state,
    "labels": dict(entry.labels),
    "notes": entry.notes,
    "task": types.task_to_json(trajectory.task),
    "success": trajectory.success,
    "error": trajectory.error,
    "reward": trajectory.total_reward,
    "scores": dict(trajectory.scores),
    "final_prompt_ids": plain(trajectory.final_prompt_ids),
    "steps": [step | {"metadata": dict(step["metadata"])} for step in steps],
  }
