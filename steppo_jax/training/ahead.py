"""Rollouts that go on while the learner works: asynchronous training.

With `rollout.staleness=K` the episodes of update u begin as soon as u - K
updates are done. Tokens of update u are then sampled with weights that are at
most K updates behind those that are trained with them, and the learner finds
the episodes of its next update finished, or nearly.

-   **The bound holds by admission.** An episode begins only when the engine is
    given weights of at least u - K updates, and weights only get newer. Nothing
    is ever too old, so that nothing is thrown away; where an episode is slow
    the learner waits for it.
-   **A step is sampled by one policy.** Weights change between responses, never
    inside one: new ones wait until the responses under way have ended. An
    episode may run across several changes, and each of its steps names its own
    `policy_version`. What the sampler holds of earlier prompts is dropped with
    the weights that made it, and read anew.
-   **Order and share are those of `Rollouts`.** Update u is trained on the
    episodes that `Run.episodes` names for it, in their order, and each process
    plays its share of them. What differs from a run that waits is the weights
    alone.

Every episode is in the journal of its update before it is trained on. A run
that goes on finds the finished ones there, whichever weights sampled them, and
trains each exactly once; those that were under way are played from their start
with the weights there are then.
"""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from steppo_jax import types
from steppo_jax.processes import kill_points, waits
from steppo_jax.rollout import gathering, loop
from steppo_jax.rollout import journal as journal_lib
from steppo_jax.training import episodes as episodes_lib

_log = logging.getLogger(__name__)

# Seconds that a call of an environment may take to the end of the run.
_END_S = 30.0


class _Closed(Exception):
  """Ends the thread that plays."""


@dataclasses.dataclass
class _Batch:
  """The episodes of one update that this process plays."""

  update: int
  episodes: Sequence[loop.Episode]
  journal: journal_lib.Journal | None
  begun: int = 0
  done: dict[str, types.Trajectory] = dataclasses.field(default_factory=dict)

  @property
  def missing(self) -> list[str]:
    return [e.uid for e in self.episodes if e.uid not in self.done]

  def finish(self) -> None:
    if self.journal is not None:
      if self.journal.end is None:
        self.journal.finish({})
      self.journal.close()


class Ahead(episodes_lib.Rollouts):
  """Plays the episodes of later updates while an earlier one is learned.

  Args:
    config: The run's options, with `rollout.staleness` of at least 1.
    folder: The run's folder.
    players: What plays the episodes, in a thread of its own; nobody else may
      use them from the first `play` to `close`.
    on_episode: Called with every trajectory of an update, by whoever calls
      `play`.
    episodes_of: The episodes of an update, those of all processes; called once
      for each update, in order.
    note: Called with the name of an event and its fields, by any thread:
      "published" once the engine samples with other weights.

  Attributes:
    discarded: Episodes of the last update that were begun, or found in its
      journal, and not given to the learner; 0, as nothing is thrown away.
  """

  def __init__(
    self,
    config,
    folder,
    players,
    on_episode: Callable[[types.Trajectory], None],
    episodes_of: Callable[[int], Sequence[loop.Episode]],
    note: Callable[..., Any] = lambda *_, **__: None,
  ):
    super().__init__(config, folder, players, on_episode)
    self._episodes_of = episodes_of
    self._note = note
    self.discarded = 0
    self._bound = config.rollout.staleness
    self._changed = threading.Condition()
    self._thread: threading.Thread | None = None
    self._failed: BaseException | None = None
    self._closed = False
    self._news: futures.Future = futures.Future()
    self._refused = False  # By the last answer of `take`.
    self._version, self._next = 0, 0
    self._waiting: tuple[Any, int, float] | None = None
    self._queue: collections.deque[loop.Episode] = collections.deque()
    self._batches: dict[int, _Batch] = {}
    self._of: dict[str, _Batch] = {}
    self._counted: dict[str, int] = {}

  # What the learner's thread calls.

  def set_policy(self, policy: Any, version: int) -> None:
    """Gives the engine weights, between two of its responses.

    Args:
      policy: Parameters on any devices; they are copied.
      version: Updates behind them.
    """
    if self._thread is None:
      self._version = self._next = version
      self._players.engine.set_params(policy, version)
      return
    given = time.monotonic()
    prepared = self._players.engine.prepare(policy)
    with self._changed:
      self._waiting, self._version = (prepared, version, given), version
      self._tell()

  def play(
    self, update: int, episodes: Sequence[loop.Episode]
  ) -> tuple[list[types.Trajectory], dict[str, int]]:
    """Waits for the episodes of the next update; see `Rollouts.play`.

    Raises:
      RuntimeError: a journal cannot be written, or a step is staler than the
        bound, which would be a fault of this class.
    """
    if self._thread is None:
      self._counted = dataclasses.asdict(self._players.engine.counters)
      self._thread = threading.Thread(
        target=self._work, name="rollouts", daemon=True
      )
      self._thread.start()
    batch = self._finished(update)
    mine = [batch.done[e.uid] for e in batch.episodes]
    self.discarded = batch.begun - len(mine)
    mine = self._players.claim(update, batch.episodes, mine)
    oldest = min(
      (s.policy_version for t in mine for s in t.steps), default=update
    )
    if update - oldest > self._bound:
      raise RuntimeError(
        f"update {update} got a step of {oldest} updates, more than "
        f"rollout.staleness={self._bound} behind"
      )
    now = dataclasses.asdict(self._players.engine.counters)
    counted = {name: n - self._counted[name] for name, n in now.items()}
    self._counted = now
    what = f"the episodes of update {update}"
    return gathering.gather(self._hosts, what, mine, episodes, counted)

  def finished_updates(self) -> int:
    """Updates whose episodes have ended and wait for the learner."""
    with self._changed:
      return sum(not batch.missing for batch in self._batches.values())

  def queued(self) -> int:
    """Episodes that were admitted and not trained on yet.

    There are never more than those of the next `rollout.staleness` + 1 updates,
    however long learner or environments stand still.
    """
    with self._changed:
      return sum(len(batch.episodes) for batch in self._batches.values())

  def held(self) -> dict[str, Any]:
    """What is on devices beside the engine's: weights that it will take."""
    waiting = self._waiting
    return {} if waiting is None else {"weights that wait for it": waiting[0]}

  def close(self) -> None:
    """Ends the thread; episodes under way are played anew another time."""
    with self._changed:
      self._closed = True
      self._tell()
    if self._thread is not None:
      self._thread.join(_END_S)
      if self._thread.is_alive():
        _log.warning("an environment holds the rollouts: they are left behind")
      else:
        self._waiting = None  # Weights that nobody samples with any more.

  def _finished(self, update: int) -> _Batch:
    """The episodes of an update once all have ended; tells of each."""
    what = lambda: self._missing(update)
    with waits.on(waits.LEARNER, waits.ROLLOUTS, what):
      batch = self._await(update)
    kill_points.passed("rollout: finished")
    return batch

  def _missing(self, update: int) -> str:
    """What the learner waits for."""
    batch = self._batches.get(update)
    return (
      f"episodes {waits.named(batch.missing) if batch else 'that begin'} of "
      f"update {update}; the sampler has weights of "
      f"{self._players.engine.version} updates and {len(self._queue)} episodes "
      "wait to begin"
    )

  def _await(self, update: int) -> _Batch:
    told: set[str] = set()
    while True:
      with self._changed:
        if self._failed is not None:
          raise self._failed
        batch = self._batches.get(update)
        fresh = [] if batch is None else list(batch.done.values())
        missing = batch is None or batch.missing
        if missing and len(fresh) == len(told):
          self._changed.wait(1.0)
        if not missing:
          del self._batches[update]
      for trajectory in fresh:
        if trajectory.uid not in told:
          told.add(trajectory.uid)
          self._on_episode(trajectory)
      if not missing:
        return batch

  def _tell(self) -> None:
    """Wakes both threads; the lock is held."""
    if not self._news.done():
      self._news.set_result(None)
    self._changed.notify_all()

  # What the thread that plays calls: `loop.Feed`.

  def _work(self) -> None:
    try:
      self._players.play_from(self, self._ended_one)
    except _Closed:
      pass
    except BaseException as error:  # The learner's thread raises it.
      with self._changed:
        self._failed = error
        self._changed.notify_all()
    finally:
      for batch in list(self._batches.values()):
        if batch.journal is not None:
          batch.journal.close()

  def take(self) -> loop.Episode | None:
    """The next episode that the bound admits."""
    with self._changed:
      self._check_open()
      while not self._queue:
        if self.ended() or self._next - self._bound > self._version:
          if self._waiting is None:
            self._news = futures.Future()
          self._refused = True
          return None
        self._begin(self._next)
        self._next += 1
      self._refused = False
      episode = self._queue.popleft()
      self._of[episode.uid].begun += 1
      return episode

  def ended(self) -> bool:
    """Whether the last update's episodes have all begun."""
    return not self._queue and self._next >= self._config.num_updates

  def change_waits(self) -> bool:
    """Whether there are newer weights than the engine's."""
    with self._changed:
      self._check_open()
      return self._waiting is not None

  def change(self) -> None:
    """Gives the engine the newest weights."""
    with self._changed:
      prepared, version, given = self._waiting
      self._waiting = None
    self._players.engine.swap(prepared, version)
    self._note("published", version=version, took=time.monotonic() - given)

  def news(self) -> futures.Future:
    """Done once weights wait, or have come since `take` gave no episode."""
    with self._changed:
      if self._news.done() and self._waiting is None and not self._closed:
        # The engine has the weights already. Whoever got no episode asks once
        # more, and rests if there is no room for one.
        if not self._refused:
          self._news = futures.Future()
        self._refused = False
      return self._news

  def _check_open(self) -> None:
    if self._closed:
      raise _Closed

  def _begin(self, update: int) -> None:
    """Queues the episodes of an update that its journal has not."""
    everyone = self._episodes_of(update)
    mine = self._hosts.share(everyone, self._config.group_size)
    batch = _Batch(update, mine, None)
    if self._config.keep_journals is not None:
      belongs = {
        "update": update,
        "seed": self._config.seed,
        "staleness": self._bound,
        "episodes": [episode.uid for episode in mine],
      }
      path = journal_lib.path_of(self._journals, update, self._hosts.index)
      batch.journal = journal_lib.Journal(path, belongs)
      kill_points.passed("journal: opened")
      task_of = {e.uid: e.task for e in mine}
      # With the very task that was sampled, not what JSON made of it.
      batch.done = {
        uid: dataclasses.replace(t, task=task_of[uid])
        for uid, t in batch.journal.trajectories.items()
      }
    self._batches[update] = batch
    batch.begun = len(batch.done)
    missing = set(batch.missing)
    if not missing:
      batch.finish()
    for episode in mine:
      if episode.uid in missing:
        self._of[episode.uid] = batch
        self._queue.append(episode)
    self._changed.notify_all()

  def _ended_one(self, trajectory: types.Trajectory) -> None:
    with self._changed:
      # What a closed environment answers is no end of an episode.
      self._check_open()
    batch = self._of.pop(trajectory.uid)
    if batch.journal is not None:
      batch.journal.append(trajectory)
      kill_points.passed("rollout: an episode")
    with self._changed:
      if batch.missing == [trajectory.uid]:
        batch.finish()
      batch.done[trajectory.uid] = trajectory
      self._changed.notify_all()
