"""The pool: episodes between those who play them and those who learn of them.

Agents, gateways and learners are processes that may end at any moment. What
they hand to each other lies in one SQLite file, in which every episode has one
state at a time, and every change of states is one transaction:

    issued ──start──► running ──finish──► finished ──► ready ──lease──► leased
      ▲                 │  │              (the whole group            │  │
      └───lease ends────┘  └─► failed      has ended)    ▲──lease ends┘  ▼
                                                         └────────    consumed

A group is one task and the number of its episodes, which are compared with each
other; it becomes ready as a whole, and the oldest ready group is leased first.
A lease has an end: what belonged to a process that is no more is given out
again. `issued = consumed + failed + what lies in between`, at any time.

This module imports no JAX.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from steppo_jax import types
from steppo_jax.processes import kill_points
from steppo_jax.rollout import codec, pool_file

State = Literal[
  "issued", "running", "finished", "ready", "leased", "consumed", "failed"
]
Channel = Literal["train", "validation"]
STATES = State.__args__
CHANNELS = Channel.__args__
# Nothing more happens to an episode in one of these.
_ENDED = ("consumed", "failed")
# Most episodes of a pool by default; seconds of a lease that does not end.
CAPACITY, FOREVER_S = 4096, 10 * 365 * 24 * 3600.0

Full, Lost = pool_file.Full, pool_file.Lost


class Ticket(NamedTuple):
  """An episode to be played.

  Attributes:
    uid: Its unique name.
    group: Name of its group.
    task: What is to be done.
    key: Integers that the sampler's keys derive from; the turn is appended.
    seed: Of the environment.
    channel: What it is for.
    attempt: 1 the first time, one more after each lease that ended.
  """

  uid: str
  group: str
  task: types.Task
  key: tuple[int, ...]
  seed: int
  channel: Channel
  attempt: int


class Pool:
  """The episodes of one file, which any number of processes may open.

  Any thread may call its methods. Each returns when what it did is on the disk.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    capacity: int = CAPACITY,
    attempts: int = 3,
    clock: Callable[[], float] = time.time,
  ):
    """Opens the file, or makes it.

    Args:
      path: The file; its folder is made.
      capacity: Most episodes that are neither consumed nor failed.
      attempts: Leases after whose end an episode has failed.
      clock: Seconds, the same for all processes.

    Raises:
      ValueError: a number is below 1, or the file is no pool of this version.
      RuntimeError: it cannot be read or written.
    """
    for name, value in (("capacity", capacity), ("attempts", attempts)):
      if value < 1:
        raise ValueError(f"{name}={value} of a pool must be at least 1")
    self._capacity, self._attempts, self._clock = capacity, attempts, clock
    self.file = pool_file.File(path)

  def close(self) -> None:
    self.file.close()

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def issue(
    self,
    group: str,
    task: types.Task,
    episodes: Sequence[tuple[str, tuple[int, ...], int]],
    *,
    channel: Channel = "train",
  ) -> bool:
    """Takes in a group of episodes that are to be played.

    Args:
      group: A name that no other group has.
      task: What is to be done.
      episodes: Names, keys and seeds; see `Ticket`.
      channel: What it is for.

    Returns:
      Whether it is new; a group that is there already stays as it is.

    Raises:
      Full: the pool has no room for it.
      ValueError: an unknown channel, no episode, or a name that is taken.
    """
    if channel not in CHANNELS:
      raise ValueError(f"channel={channel!r} is none of {', '.join(CHANNELS)}")
    if not episodes:
      raise ValueError(f"the group {group} has no episodes")
    with self.file.transaction() as run:
      if run("SELECT 1 FROM groups WHERE name = ?", group).fetchone():
        return False
      places = ", ".join("?" * len(_ENDED))
      (live,) = run(
        f"SELECT count(*) FROM episodes WHERE state NOT IN ({places})", *_ENDED
      ).fetchone()
      if live + len(episodes) > self._capacity:
        raise Full(
          f"the pool {self.file.path} holds {live} episodes of at most "
          f"{self._capacity}, and {len(episodes)} more do not fit: take out "
          "what has ended (pool FILE export --consume), or serve it with a "
          "larger --pool-capacity"
        )
      number = run(
        "INSERT INTO groups (name, task, task_uid, channel) "
        "VALUES (?, ?, ?, ?)",
        group, json.dumps(types.task_to_json(task)), task.uid, channel,
      ).lastrowid  # fmt: skip
      for uid, key, seed in episodes:
        if run("SELECT 1 FROM episodes WHERE uid = ?", uid).fetchone():
          raise ValueError(f"the pool has an episode {uid} already")
        run(
          "INSERT INTO episodes (uid, in_group, key, seed, state) "
          "VALUES (?, ?, ?, ?, 'issued')",
          uid, number, json.dumps(key), seed,
        )  # fmt: skip
    return True

  def start(
    self,
    owner: str,
    seconds: float,
    *,
    uid: str | None = None,
    task_uid: str | None = None,
    channel: Channel | None = None,
    request: tuple[str, str] | None = None,
  ) -> Ticket | None:
    """Begins the oldest episode that waits to be played; None without one.

    Args:
      owner: Who plays it.
      seconds: Until it counts as lost, unless it is renewed or finished.
      uid: This episode and no other.
      task_uid: One of this task.
      channel: One of this channel.
      request: Name and digest of what asks; see `pool_entries.request`.
    """
    asked = {"uid": uid, "task_uid": task_uid, "channel": channel}
    given = {name: value for name, value in asked.items() if value is not None}
    where = ["state = 'issued'", *(f"{name} = ?" for name in given)]
    with self.file.transaction() as run:
      self._expire(run)
      row = run(
        "SELECT e.number, uid, name, task, key, seed, channel, attempts "
        "FROM episodes e JOIN groups g ON g.number = in_group "
        f"WHERE {' AND '.join(where)} ORDER BY e.number LIMIT 1",
        *given.values(),
      ).fetchone()
      if row is None:
        return None
      number, uid, group, task, key, seed, channel, attempts = row
      run(
        "UPDATE episodes SET state = 'running', owner = ?, until = ?, "
        "attempts = ? WHERE number = ?",
        owner, self._clock() + seconds, attempts + 1, number,
      )  # fmt: skip
      if request is not None:
        row = *request, uid, attempts + 1
        run("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)", *row)
    task = types.task_from_json(json.loads(task))
    key = tuple(json.loads(key))
    return Ticket(uid, group, task, key, seed, channel, attempts + 1)

  def renew(self, uid: str, owner: str, seconds: float) -> None:
    """Puts the end of a running episode's lease off.

    Raises:
      Lost: the episode is not running, or somebody else plays it.
    """
    with self.file.transaction() as run:
      changed = run(
        "UPDATE episodes SET until = ? "
        "WHERE uid = ? AND owner = ? AND state = 'running'",
        self._clock() + seconds, uid, owner,
      ).rowcount  # fmt: skip
      if not changed:
        raise Lost(f"episode {uid} is not played by {owner} any more")

  def finish(
    self,
    trajectory: types.Trajectory,
    owner: str,
    *,
    labels: Mapping[str, str] | None = None,
    notes: str = "",
    receipt: str = "",
  ) -> None:
    """Takes in an episode that has ended; one with an error has failed.

    Finishing it once more, as a client does that did not get the answer,
    changes nothing.

    Args:
      trajectory: The episode; its uid names it.
      owner: Who played it.
      labels: To find it by.
      notes: Text that is kept with it.
      receipt: What whoever asks for it later is told; see `receipt`.

    Raises:
      Lost: the lease has ended and somebody else plays it, or it was finished
        as another one.
      ValueError: the pool has no such episode.
    """
    payload = codec.to_bytes([trajectory])
    cause = (trajectory.error or "").partition(":")[0] or None
    with self.file.transaction() as run:
      row = run(
        "SELECT number, in_group, state, owner, payload FROM episodes "
        "WHERE uid = ?",
        trajectory.uid,
      ).fetchone()
      if row is None:
        raise ValueError(f"the pool has no episode {trajectory.uid}")
      number, group, state, holder, before = row
      if state != "running" or holder != owner:
        if before == payload and holder == owner:
          return
        raise Lost(
          f"episode {trajectory.uid} is {state}, and not played by {owner}: "
          "what came of it is not taken"
        )
      versions = [step.policy_version for step in trajectory.steps]
      kill_points.passed("pool: half a finish")
      run(
        "UPDATE episodes SET state = ?, until = NULL, cause = ?, version = ?, "
        "success = ?, reward = ?, steps = ?, labels = ?, notes = ?, "
        "receipt = ?, payload = ? WHERE number = ?",
        "failed" if cause else "finished", cause, max(versions, default=None),
        trajectory.success, trajectory.total_reward, len(versions),
        json.dumps(dict(labels or {})), notes, receipt, payload, number,
      )  # fmt: skip
      complete(run, group)
    kill_points.passed("pool: finished")

  def fail(self, uid: str, owner: str, cause: str) -> None:
    """Counts a running episode as failed without a record of it.

    Raises:
      Lost: the episode is not running, or somebody else plays it.
    """
    with self.file.transaction() as run:
      row = run(
        "SELECT in_group FROM episodes "
        "WHERE uid = ? AND owner = ? AND state = 'running'",
        uid, owner,
      ).fetchone()  # fmt: skip
      if row is None:
        raise Lost(f"episode {uid} is not played by {owner} any more")
      run(
        "UPDATE episodes SET state = 'failed', until = NULL, cause = ? "
        "WHERE uid = ?",
        cause, uid,
      )  # fmt: skip
      complete(run, *row)

  def lease(
    self,
    owner: str,
    seconds: float,
    *,
    groups: int = 1,
    channel: Channel | None = "train",
    names: Sequence[str] | None = None,
  ) -> list[types.Trajectory]:
    """The episodes of the oldest ready groups, for a learner.

    An owner that has leased something already gets the same again, so that one
    that was killed, and begins its work anew, learns of the same episodes.

    Args:
      owner: Who learns of them, such as "update-7".
      seconds: Until they are given to others, unless they are consumed.
      groups: How many at most.
      channel: Of the groups; None for any.
      names: These groups and no others.

    Returns:
      Trajectories in the order in which they were issued; failed ones are not
      among them.
    """
    with self.file.transaction() as run:
      self._expire(run)
      until = self._clock() + seconds
      mine = "state = 'leased' AND owner = ?"
      held = run(f"UPDATE episodes SET until = ? WHERE {mine}", until, owner)
      if not held.rowcount:
        named, values = "", []
        if channel is not None:
          named, values = "AND channel = ?", [channel]
        if names is not None:
          named += f" AND name IN ({', '.join('?' * len(names))})"
          values += names
        found = run(
          "SELECT DISTINCT g.number FROM groups g "
          "JOIN episodes ON in_group = g.number "
          f"WHERE state = 'ready' {named} "
          "ORDER BY g.number LIMIT ?",
          *values, groups,
        ).fetchall()  # fmt: skip
        for (group,) in found:
          run(
            "UPDATE episodes SET state = 'leased', owner = ?, until = ? "
            "WHERE in_group = ? AND state = 'ready'",
            owner, until, group,
          )  # fmt: skip
      rows = run(
        f"SELECT payload FROM episodes WHERE {mine} ORDER BY number", owner
      ).fetchall()
    kill_points.passed("pool: leased")
    return codec.from_bytes(b"".join(payload for (payload,) in rows))

  def consume(self, owner: str) -> int:
    """Says that what an owner has leased was learnt, for good.

    Returns:
      The number of its episodes; calling it again changes nothing.

    Raises:
      Lost: it has leased nothing, or the lease has ended.
    """
    with self.file.transaction() as run:
      run(
        "UPDATE episodes SET state = 'consumed', until = NULL "
        "WHERE owner = ? AND state = 'leased'",
        owner,
      )
      (count,) = run(
        "SELECT count(*) FROM episodes WHERE owner = ? AND state = 'consumed'",
        owner,
      ).fetchone()
      if not count:
        raise Lost(f"{owner} has no lease: it has ended, or there was none")
    kill_points.passed("pool: consumed")
    return count

  def forget(self, owner: str) -> None:
    """Drops the records of what an owner has consumed; it stays listed."""
    with self.file.transaction() as run:
      run(
        "UPDATE episodes SET payload = NULL "
        "WHERE owner = ? AND state = 'consumed'",
        owner,
      )

  def owners(self) -> list[str]:
    """Who has leased something."""
    with self.file.transaction() as run:
      rows = run("SELECT DISTINCT owner FROM episodes WHERE state = 'leased'")
      return [owner for (owner,) in rows]

  def reclaim(self) -> None:
    """Gives all running episodes out again.

    For the only process that starts any, when it is started anew.
    """
    with self.file.transaction() as run:
      run(
        "UPDATE episodes SET state = 'issued', owner = '', until = NULL "
        "WHERE state = 'running'"
      )

  def expire(self) -> None:
    """Takes back what belongs to leases that have ended."""
    with self.file.transaction() as run:
      self._expire(run)

  def _expire(self, run) -> None:
    now = self._clock()
    run(
      "UPDATE episodes SET state = 'ready', owner = '', until = NULL "
      "WHERE state = 'leased' AND until < ?",
      now,
    )
    late = run(
      "SELECT uid, in_group, attempts FROM episodes "
      "WHERE state = 'running' AND until < ?",
      now,
    ).fetchall()
    for uid, group, attempts in late:
      if attempts < self._attempts:
        change = "state = 'issued'"
      else:
        change = "state = 'failed', cause = 'LeaseEnded'"
      run(
        f"UPDATE episodes SET {change}, owner = '', until = NULL WHERE uid = ?",
        uid,
      )
      complete(run, group)


def complete(run, group: int) -> None:
  """Makes a group ready when none of its episodes is still to be played."""
  (missing,) = run(
    "SELECT count(*) FROM episodes "
    "WHERE in_group = ? AND state IN ('issued', 'running')",
    group,
  ).fetchone()
  if not missing:
    run(
      "UPDATE episodes SET state = 'ready' "
      "WHERE in_group = ? AND state = 'finished'",
      group,
    )
