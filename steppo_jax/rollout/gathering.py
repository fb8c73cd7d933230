"""Episodes that several processes have played, put together again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from steppo_jax import types
from steppo_jax.processes import frames
from steppo_jax.rollout import codec, loop


class Hosts(Protocol):
  """The part of `processes.hosts.Hosts` that is used here."""

  count: int

  def gather(self, what: str, part: bytes) -> list[bytes]: ...


def gather(
  hosts: Hosts,
  what: str,
  mine: Sequence[types.Trajectory],
  episodes: Sequence[loop.Episode],
  counted: Mapping[str, int],
) -> tuple[list[types.Trajectory], dict[str, int]]:
  """The trajectories of all processes, the same in each of them.

  Args:
    hosts: The processes.
    what: Names what is gathered, for messages.
    mine: Trajectories of this process.
    episodes: Those of all processes.
    counted: Numbers of this process that are added over the processes.

  Returns:
    Trajectories in the order of `episodes`, and the sums.
  """
  if hosts.count == 1:
    return list(mine), dict(counted)
  own = frames.pack(dict(counted), codec.to_bytes(mine))
  found: dict[str, types.Trajectory] = {}
  total: dict[str, Any] = dict.fromkeys(counted, 0)
  for part in hosts.gather(what, own):
    head, data = frames.unpack(part)
    for name, value in head.items():
      total[name] += value
    found |= {t.uid: t for t in codec.from_bytes(data)}
  return [
    # With the very task that was sampled, not what JSON made of it.
    dataclasses.replace(found[episode.uid], task=episode.task)
    for episode in episodes
  ], total
