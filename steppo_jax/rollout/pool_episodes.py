"""The episodes of a run in its pool: issued, looked after, and read back.

A run names an episode by what it is for, such as "3-0-1" for update 3. In the
pool an evaluation's has a prefix before that, because the same panel is played
again and again. The name of a group is that of its episodes without the last
number.

This module imports no JAX.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from steppo_jax import types
from steppo_jax.processes import kill_points
from steppo_jax.rollout import loop, pool_entries
from steppo_jax.rollout import pool as pool_lib

Groups = Mapping[str, Sequence[loop.Episode]]


def by_group(
  episodes: Iterable[loop.Episode], prefix: str
) -> dict[str, list[loop.Episode]]:
  """Episodes by the names that their groups have in the pool."""
  groups: dict[str, list[loop.Episode]] = {}
  for one in episodes:
    groups.setdefault(prefix + one.uid.rpartition("-")[0], []).append(one)
  return groups


def issue(
  pool: pool_lib.Pool,
  episodes: Iterable[loop.Episode],
  prefix: str,
  channel: pool_lib.Channel,
) -> dict[str, list[loop.Episode]]:
  """Puts groups into the pool that it has not; all of them by name.

  Raises:
    pool.Full: there is no room for them.
  """
  groups = by_group(episodes, prefix)
  for name, of in groups.items():
    pool.issue(
      name, of[0].task,
      [(prefix + one.uid, one.key, one.seed) for one in of],
      channel=channel,
    )  # fmt: skip
  if groups:
    kill_points.passed("agents: issued")
  return groups


def under_way(
  pool: pool_lib.Pool, groups: Groups, prefix: str
) -> dict[str, list[str]]:
  """Episodes that are not played yet, by the groups that have any."""
  of = {prefix + e.uid: name for name in groups for e in groups[name]}
  found: dict[str, list[str]] = {}
  for uid in pool_entries.under_way(pool):
    if uid in of:
      found.setdefault(of[uid], []).append(uid)
  return found


def records(
  pool: pool_lib.Pool,
  prefix: str,
  episodes: Sequence[loop.Episode],
  found: Iterable[types.Trajectory],
) -> list[types.Trajectory]:
  """What came of episodes that have ended, under the names of the run.

  One that the pool counts as failed has failed, whatever its record says.

  Args:
    pool: It has all of them.
    prefix: Of their names in the pool.
    episodes: Which ones.
    found: The records that are at hand.
  """
  by_uid = {one.uid: one for one in found}
  missing = {
    prefix + e.uid: e for e in episodes if prefix + e.uid not in by_uid
  }
  kept = pool_entries.trajectories(pool, list(missing))
  by_uid |= {one.uid: one for one in judged(pool, kept)}
  without = [uid for uid in missing if uid not in by_uid]
  causes = pool_entries.causes(pool, without)
  for uid in without:
    error = f"{causes.get(uid, 'Lost')}: without a record"
    by_uid[uid] = types.Trajectory(
      uid, missing[uid].task, (), None, False, error
    )
  return [_named(by_uid[prefix + e.uid], e) for e in episodes]


def judged(
  pool: pool_lib.Pool, done: Sequence[types.Trajectory]
) -> list[types.Trajectory]:
  """Records, of which those have failed that the pool counts as failed.

  Somebody may exclude an episode after its end, until a learner leases it.

  Args:
    pool: It may lack some of them.
    done: Records under their names in the pool.
  """
  causes = pool_entries.causes(
    pool, [one.uid for one in done if one.error is None]
  )
  return [
    dataclasses.replace(
      one, success=False, error=f"{causes[one.uid]}: after its end"
    )
    if one.uid in causes
    else one
    for one in done
  ]


def forget(pool: pool_lib.Pool, needed_from: int | float, *, keep: int) -> None:
  """Drops the records of old updates, and of their evaluations.

  That of a failed episode goes as that of a consumed one does; all stay listed.

  Args:
    pool: The pool of the run.
    needed_from: The first update that a restart may play again.
    keep: So many updates before that keep their records.
  """
  query = (
    "SELECT DISTINCT g.number, name FROM groups g "
    "JOIN episodes ON in_group = g.number "
    "WHERE payload IS NOT NULL AND state IN ('consumed', 'failed')"
  )
  with pool.file.transaction() as run:
    updates = {}
    for number, name in run(query).fetchall():
      match = re.match(r"(evaluation)?(\d+)-", name)
      if match and int(match[2]) < needed_from:
        updates[number] = int(match[2]), not match[1]
    trained = sorted({update for update, trains in updates.values() if trains})
    kept = trained[max(0, len(trained) - keep) :]
    before = min(kept, default=needed_from)
    for number, (update, _) in updates.items():
      if update < before:
        run(
          "UPDATE episodes SET payload = NULL "
          "WHERE in_group = ? AND state IN ('consumed', 'failed')",
          number,
        )


def _named(found: types.Trajectory, episode: loop.Episode) -> types.Trajectory:
  """A record with the episode's own name, and the very task."""
  steps = tuple(
    dataclasses.replace(step, trajectory_uid=episode.uid)
    for step in found.steps
  )
  return dataclasses.replace(
    found, uid=episode.uid, task=episode.task, steps=steps
  )
