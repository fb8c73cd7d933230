"""The episodes of an update: each is played, and trained on, once.

A trajectory that has ended is written to the journal of its update before
anything else happens to it. A restart within the update then finds

-   all of them, and plays none;
-   some of them. With `rollout.env_threads=0` the order of everything is fixed,
    so that playing all episodes again gives the same bits, and what is in the
    journal is compared with that. It is not left out: the sampler reads a
    prompt in other pieces when the company differs, which changes the last bits
    of log-probabilities. With threads there is no fixed order, and only the
    missing episodes are played.

Where both exist, the one in the journal counts.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from steppo_jax import types
from steppo_jax.datasets import store
from steppo_jax.datasets import trajectories as trajectories_lib
from steppo_jax.processes import kill_points
from steppo_jax.rollout import gathering, loop
from steppo_jax.rollout import journal as journal_lib
from steppo_jax.sampler import hand_over
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import players as players_lib

_log = logging.getLogger(__name__)


class Rollouts:
  """Plays the episodes of updates with the weights that it is given.

  Args:
    config: The run's options.
    folder: The run's folder.
    players: What plays the episodes. Each of its processes plays its share of
      the groups.
    on_episode: Called with every trajectory when it ends, or is found.
  """

  def __init__(
    self,
    config: config_lib.RunConfig,
    folder: pathlib.Path,
    players: players_lib.Players,
    on_episode: Callable[[types.Trajectory], None],
  ):
    self._config = config
    self._players = players
    self._hosts = players.hosts
    self._data = folder / "data"
    self._journals = folder / run_folder.JOURNALS_NAME
    self._on_episode = on_episode
    self._policy = ""

  def held(self) -> dict[str, Any]:
    """What is on devices beside what the engine holds."""
    return {}

  def set_policy(self, policy: Any, version: int) -> None:
    """Gives the engine weights.

    Args:
      policy: Parameters on any devices; they are copied.
      version: Updates behind them.
    """
    self._policy = hand_over.mark(policy)
    self._players.engine.set_params(policy, version)

  def play(
    self, update: int, episodes: Sequence[loop.Episode], *, round_: int = 0
  ) -> tuple[list[types.Trajectory], dict[str, int]]:
    """Plays episodes, or finds them in the journal.

    Args:
      update: The update that they are for.
      episodes: Those of all processes, group by group; this one plays its share
        and gets the others' trajectories from them.
      round_: Rounds of dynamic sampling that came before, each with a journal
        of its own.

    Returns:
      Trajectories in the order of `episodes`, and what the samplers did for
      them: the sums of their counters.

    Raises:
      RuntimeError: the journal cannot be written.
    """
    mine = self._hosts.share(episodes, self._config.group_size)
    trajectories, counted = self._play_mine(update, mine, round_)
    return gathering.gather(
      self._hosts,
      f"the episodes of update {update}" + (f", round {round_}" * bool(round_)),
      trajectories,
      episodes,
      counted,
    )

  def _play_mine(self, update, episodes, round_):
    if self._config.keep_journals is None:
      return self._play(episodes, self._on_episode)
    belongs = {
      "update": update,
      "seed": self._config.seed,
      "policy": self._policy,
      "episodes": [episode.uid for episode in episodes],
    }
    path = journal_lib.path_of(
      self._journals, update, self._hosts.index, round_
    )
    with journal_lib.Journal(path, belongs) as journal:
      kill_points.passed("journal: opened")
      found = journal.trajectories
      if journal.end is None:
        counted = self._play_missing(episodes, journal)
        journal.finish({"counters": counted})
      else:
        counted = journal.end["counters"]
        for trajectory in found.values():
          self._on_episode(trajectory)
      kill_points.passed("rollout: finished")
    return [
      # With the very task that was sampled, not what JSON made of it.
      dataclasses.replace(found[episode.uid], task=episode.task)
      for episode in episodes
    ], counted

  def _play_missing(self, episodes, journal) -> dict[str, int]:
    before = dict(journal.trajectories)
    if before:
      _log.info("%d episodes are in the journal already", len(before))
    rollout = self._config.rollout
    # A pool gives agents' episodes again as they were.
    unordered = rollout.env_threads or rollout.engine == "http"
    if unordered and rollout.source == "env":
      for trajectory in before.values():
        self._on_episode(trajectory)
      episodes = [e for e in episodes if e.uid not in before]

    def on_finish(trajectory):
      old = before.get(trajectory.uid)
      if old is not None and not journal_lib.same(old, trajectory):
        _log.warning(
          "episode %s went differently this time: the environment is not the "
          "same twice; the first time counts",
          trajectory.uid,
        )
      journal.append(trajectory)
      self._on_episode(journal.trajectories[trajectory.uid])
      kill_points.passed("rollout: an episode")

    return self._play(episodes, on_finish)[1]

  def _play(self, episodes, on_finish):
    counters = self._players.engine.counters
    before = dataclasses.asdict(counters)
    trajectories = self._players.play(episodes, on_finish=on_finish)
    now = dataclasses.asdict(counters)
    return trajectories, {name: now[name] - before[name] for name in now}

  def close(self) -> None:
    """Ends what goes on between two calls of `play`: here nothing."""

  def record(self, trajectories, update: int) -> None:
    """Keeps the episodes of an update, if it is one of those to be kept."""
    every = self._config.record_every
    if every is None or update % every or not self._hosts.is_first:
      return
    name, form = f"update{update}", self._config.record_format
    # A run that goes on from a checkpoint plays the same episodes again.
    done = trajectories_lib.folder_of(self._data, name, form)
    if not (done / store.DIGESTS if form == "tfds" else done).exists():
      tokenizer = self._players.prompt.tokenizer
      trajectories_lib.write(
        self._data, name, {"train": trajectories}, tokenizer, form
      )

  def prune(self, needed_from: int) -> None:
    """Lets go of episodes that no restart needs.

    Args:
      needed_from: First update that a restart may play again.
    """
    self._players.settle(needed_from)
    if self._config.keep_journals is not None and self._hosts.is_first:
      journal_lib.prune(
        self._journals,
        needed_from=needed_from,
        keep=self._config.keep_journals,
      )
      kill_points.passed("journal: pruned")
