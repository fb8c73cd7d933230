"""Players that are agents of their own, which ask this process for answers.

The episodes of an update are issued to the pool. Agents take them, one session
each, and ask the gateway, which samples with the run's own engine. What they
finished is leased to the update that it was played for, so that a run that is
killed within the update trains on the same episodes, and is consumed once a
checkpoint holds the update.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import pathlib
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import pydantic

from steppo_jax import types
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.processes import waits
from steppo_jax.rollout import agents as agents_lib
from steppo_jax.rollout import loop, options, pool_episodes
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.serving import (
  answers,
  app,
  background,
  scheduler,
  session_schema,
  sessions,
)
from steppo_jax.serving import session as session_lib
from steppo_jax.training import gated as gated_lib

_log = logging.getLogger(__name__)
_LOOK_S = 0.05
# Nobody else takes what this run has leased.
# How an agent ends that was told to stop, and the seconds that its run may take
# to be told so, too.
_STOPPED = tuple(
  f"AgentKilled: by signal {n:d}" for n in (signal.SIGTERM, signal.SIGINT)
)
_STOP_S = 5.0


@dataclasses.dataclass(frozen=True)
class AgentPrompt:
  """What a run has to know of prompts that the gateway makes.

  Attributes:
    tokenizer: What it encodes with.
    append_only: An agent may begin its conversation anew at any step.
  """

  tokenizer: types.Tokenizer
  append_only: bool = False

  def action(self, response_ids) -> str:
    """What was said."""
    return self.tokenizer.decode(response_ids)


class AgentPlayers:
  """Plays episodes as `players.Players` does, by agents.

  Attributes:
    engine: The sampler, for whoever gives it weights.
    prompt: See `AgentPrompt`.
    rollout: Limits of an episode.
    hosts: The processes of the run: one.
    waiting: See `players.Players`.
    url: The address of the gateway.
  """

  def __init__(
    self,
    config: Any,
    engine: types.Engine,
    tokenizer: types.Tokenizer,
    *,
    pool: pathlib.Path | None,
    hosts: hosts_lib.Hosts,
    waiting: Callable[[], contextlib.AbstractContextManager],
  ):
    """Starts the gateway.

    Args:
      config: The options of the run.
      engine: Samples; nobody else uses it.
      tokenizer: That of its weights; one with a chat template for chats.
      pool: The file of episodes; None for one that is gone afterwards.
      hosts: See `AgentPlayers`.
      waiting: See `AgentPlayers`.

    Raises:
      ValueError: an option does not fit.
      RuntimeError: the pool cannot be written.
    """
    self.rollout: options.RolloutConfig = config.rollout
    self.hosts, self.waiting = hosts, waiting
    self.prompt = AgentPrompt(tokenizer)
    _check(config, tokenizer, hosts)
    self._agents, self._broken_off = None, threading.Event()
    if config.rollout.source == "agents":
      self._agents = agents_lib.Agents(config.agents)
    self._config: options.AgentConfig = config.agents
    self._keep: int | None = config.keep_journals
    key = os.environ.get(agents_lib.SECRET)
    listening = background.listen(
      config.agents.host, config.agents.port, key=key, option="agents."
    )
    self._closing = contextlib.ExitStack()
    with contextlib.ExitStack() as stack:
      stack.callback(listening.close)
      # Once nothing asks it any more; see `Players.close`.
      stack.callback(getattr(engine, "close", lambda: None))
      if pool is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        pool = pathlib.Path(folder) / "pool.sqlite"
      self._pool = stack.enter_context(pool_lib.Pool(pool, capacity=1 << 30))
      # Of a process that was killed: only this one plays.
      self._pool.reclaim()
      gate = scheduler.Scheduler(engine, max_waiting=1 << 16)
      stack.callback(gate.close)
      self.engine = gated_lib.GatedEngine(engine, gate)
      self._limits = _limits(self.rollout, config.agents)
      policy = answers.Policy(
        "policy", tokenizer, gate, context=self.rollout.max_tokens,
        max_new_tokens=self.rollout.max_new_tokens,
        dialect=config.prompt.dialect,
      )  # fmt: skip
      self._sessions = sessions.Sessions(
        policy, self._pool, limits=self._limits,
        # An agent that outlives a run that was killed is not to speak in the
        # session of the one that the next run starts in its place.
        lasting=self._agents is None,
      )  # fmt: skip
      self._server = background.Background(
        app.make(policy, api_key=key, sessions=self._sessions), listening
      )
      stack.callback(self._server.close)
      if self._agents is not None:
        stack.callback(self._agents.close)
      self._closing = stack.pop_all()
    self.url = self._server.url

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Ends agents and gateway."""
    self._broken_off.set()
    self._closing.close()

  def play(
    self,
    episodes: Iterable[loop.Episode],
    *,
    temperature: float | None = None,
    on_finish: Callable[[types.Trajectory], None] | None = None,
  ) -> list[types.Trajectory]:
    """Has episodes played with the weights the engine holds.

    Args:
      episodes: What to play, whole groups.
      temperature: Of an evaluation; None for training.
      on_finish: Called with each trajectory, in the order of `episodes`.

    Returns:
      Trajectories in the order of `episodes`, failed ones with their cause.
    """
    episodes = list(episodes)
    version, trains = self.engine.version, temperature is None
    prefix = "" if trains else f"evaluation{version}-"
    channel = "train" if trains else "validation"
    self._sessions.limits = dataclasses.replace(
      self._limits,
      temperature=self.rollout.temperature if trains else temperature,
    )
    groups = pool_episodes.issue(self._pool, episodes, prefix, channel)
    with self._playing() as play:
      play([prefix + one.uid for one in episodes])
      left = dict(groups)
      while left:
        for name in self._await_some(left, prefix, futures.Future(), play):
          del left[name]
    owner = f"{prefix}update-{version}"
    found = self._pool.lease(
      owner, pool_lib.FOREVER_S, groups=len(groups), channel=channel,
      names=list(groups),
    )  # fmt: skip
    if not trains and found:
      self._pool.consume(owner)
    done = pool_episodes.records(self._pool, prefix, episodes, found)
    for one in done if on_finish is not None else ():
      on_finish(one)
    return done

  def play_from(
    self,
    feed: loop.Feed,
    on_finish: Callable[[types.Trajectory], None],
  ) -> None:
    """Has the episodes of a feed played; see `players.Players.play_from`.

    New weights wait until the answers under way have ended, and the next
    answers wait for them.

    Args:
      feed: Gives whole groups, or what is missing of some.
      on_finish: Called with the trajectories of a group when all have ended.
    """
    self._sessions.limits = dataclasses.replace(
      self._limits, temperature=self.rollout.temperature
    )
    groups: dict[str, list[loop.Episode]] = {}
    with self._playing() as play:
      while True:
        fresh = list(iter(feed.take, None))
        # Before an answer of these episodes begins, which it may be too old
        # for: they were admitted because there are newer weights.
        if feed.change_waits():
          feed.change()
        groups |= pool_episodes.issue(self._pool, fresh, "", "train")
        play([one.uid for one in fresh])
        if not groups and feed.ended():
          return
        for name in self._await_some(groups, "", feed.news(), play):
          of = groups.pop(name)
          for one in pool_episodes.records(self._pool, "", of, ()):
            on_finish(one)

  def claim(
    self,
    update: int,
    episodes: Sequence[loop.Episode],
    done: Sequence[types.Trajectory],
  ) -> list[types.Trajectory]:
    """Leases episodes that have ended to the update that is trained on them.

    Doing it once more, as a run does that was killed in between, changes
    nothing.

    Args:
      update: Number of updates done before it.
      episodes: Those of the update.
      done: Their records, in any order.

    Returns:
      The records, of which those have failed that were excluded before this.
    """
    names = list(pool_episodes.by_group(episodes, ""))
    self._pool.lease(
      f"update-{update}", pool_lib.FOREVER_S, groups=len(names), names=names
    )
    return pool_episodes.judged(self._pool, done)

  @contextlib.contextmanager
  def _playing(self) -> Iterator[Callable[[Sequence[str]], None]]:
    """What has processes of this run play episodes, if it has any.

    Each call raises what has gone wrong with earlier ones since.
    """
    if self._agents is None:
      yield lambda _: None
      return
    running: list[futures.Future] = []

    def play(uids: Sequence[str]) -> None:
      running.extend(threads.submit(self._one, uid) for uid in uids)
      for ended in [one for one in running if one.done()]:
        running.remove(ended)
        ended.result()

    with futures.ThreadPoolExecutor(self._config.processes) as threads:
      try:
        yield play
        for future in running:
          future.result()
      except BaseException:
        # Whoever is killed now has not failed: it plays again next time.
        self._broken_off.set()
        threads.shutdown(wait=False, cancel_futures=True)
        self._agents.close()
        raise

  def _await_some(
    self, groups, prefix: str, news: futures.Future, play
  ) -> list[str]:
    """Waits for groups that have ended, or news; names the former."""
    left: dict[str, list[str]] = {}
    whom, what = waits.LEARNER, "weights that let another episode begin"
    if groups:
      whom = waits.AGENTS
      what = lambda: (
        f"episodes {waits.named(list(itertools.chain(*left.values())))}"
      )
    with waits.on(waits.ROLLOUTS, whom, what):
      while True:
        left = pool_episodes.under_way(self._pool, groups, prefix)
        ended = [name for name in groups if name not in left]
        if ended or news.done():
          return ended
        play(())
        if not self._sessions.alive:
          raise RuntimeError("the engine of the gateway has failed")
        futures.wait([news], _LOOK_S)

  def _one(self, uid: str) -> None:
    """Plays one episode with a process, unless it was played before."""
    owner, seconds = f"run-{os.getpid()}", 3 * self._config.seconds
    # More than once where a lease ended: the pool gives it out again.
    while ticket := self._pool.start(owner, seconds, uid=uid):
      self._attempt(ticket, owner)

  def _attempt(self, ticket: pool_lib.Ticket, owner: str) -> None:
    """Plays an episode that was begun in the pool to its end."""
    uid = ticket.uid
    session = self._server.call(_taken(self._sessions, ticket, owner))
    task = json.dumps(types.task_to_json(ticket.task))
    variables = {
      "OPENAI_BASE_URL": f"{self.url}/v1",
      "OPENAI_API_KEY": self._sessions.keys.of(uid, ticket.attempt),
      "STEPPO_SESSION": f"{self.url}/sessions/{uid}",
      "STEPPO_TASK": task,
      "STEPPO_SEED": str(ticket.seed),
    }
    with waits.on(waits.AGENTS, "an agent's process", f"episode {uid}"):
      fault = self._agents.run(
        variables, task, lambda line: self._written(session, line)
      )
    if fault is not None and fault.startswith(_STOPPED):
      # Whoever stops a job may tell all of its processes.
      self._broken_off.wait(_STOP_S)
    if session.finished is None and not self._broken_off.is_set():
      try:
        self._finish(session, _end(fault, session.cut is not None))
      except answers.Fault as error:
        # An end that the agent had sent itself came first, or somebody has
        # excluded the episode: the pool knows what became of it.
        if error.status not in (409, 410):
          raise

  def _written(self, session, line: Mapping[str, Any]) -> None:
    """Takes in a line that an agent wrote: a reward, or the end."""
    try:
      if "status" in line:
        self._finish(session, line)
      elif "reward" in line:
        form = session_schema.Rewarded(**line)
        if form.step is None:
          # The next call may be answered before this line is read.
          raise ValueError("a line with a reward has to name its step")
        self._server.call(_rewarded(self._sessions, session, form))
    except (pydantic.ValidationError, answers.Fault) as error:
      raise ValueError(f"{json.dumps(dict(line))[:200]}: {error}") from error

  def _finish(self, session, fields: Mapping[str, Any]) -> None:
    form = session_schema.Finish(**fields)
    self._server.call(self._sessions.finish(session, form))

  def settle(self, needed_from: int | float = math.inf) -> None:
    """Consumes what was learnt by updates that no restart plays again.

    Args:
      needed_from: The first that one may play again.
    """
    for owner in self._pool.owners():
      update = re.fullmatch(r"update-(\d+)", owner)
      if update and int(update[1]) < needed_from:
        self._pool.consume(owner)
    # Their records stay for viewing as long as journals do.
    pool_episodes.forget(self._pool, needed_from, keep=self._keep or 0)


def _limits(rollout, agents) -> session_lib.Limits:
  return session_lib.Limits(
    live=1 << 16, turns=rollout.max_steps, idle_s=agents.seconds,
    max_new_tokens=rollout.max_new_tokens, by_header=agents.begin_by_header,
    own_tasks=False,
  )  # fmt: skip


def _end(fault: str | None, refused: bool) -> dict[str, Any]:
  """The end of an episode whose agent has ended without telling one.

  Args:
    fault: What went wrong, as "Cause: what"; None if nothing did.
    refused: Whether its last call was refused at a limit.
  """
  if fault is None:
    return {"status": "ended"}
  cause, _, message = fault.partition(": ")
  if cause == "AgentExit" and refused:
    # It died of the refusal, as clients do that catch no error.
    return {"status": "truncated"}
  return {"status": "error", "cause": cause, "message": message[:4096]}


async def _taken(all_sessions, ticket, owner):
  return all_sessions.take(ticket, owner)


async def _rewarded(all_sessions, session, form):
  return all_sessions.reward(session, form)


def _check(config, tokenizer, hosts) -> None:
  source = config.rollout.source
  if config.agents.begin_by_header and source != "service":
    raise ValueError(
      "agents.begin_by_header is for agents that come by themselves: set "
      "rollout.source=service, or leave it out"
    )
  if not getattr(tokenizer, "chat_template", None):
    _log.warning(
      "the tokenizer has no chat template: agents can ask /v1/completions and "
      "/inference/v1/generate, but not for chats"
    )
  if hosts.count > 1:
    raise ValueError(
      f"rollout.source={source} runs in one process, not in {hosts.count}"
    )
