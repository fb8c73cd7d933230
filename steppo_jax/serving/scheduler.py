"""One engine for many connections: continuous batching on a thread of its own.

Whoever wants an answer submits its tokens and reads pieces as they are sampled.
Answers of all connections are sampled side by side; one that has ended makes
room for the next that waits, and no more may wait than a bound says.
"""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from steppo_jax import types

_log = logging.getLogger(__name__)


class StreamingEngine(types.Engine, Protocol):
  """An engine that tells what responses under way have, and can end them."""

  def so_far(self) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """[R] ids and log-probs of each response under way, by session."""

  def cut(self, session: str) -> None:
    """Lets a response under way end at its next token."""


class Full(RuntimeError):
  """So many requests wait that another is turned away."""


class Piece(NamedTuple):
  """Some more tokens of an answer.

  Attributes:
    ids: [n] int32.
    logp: [n] float32, log-probabilities of the policy that sampled them.
    stop_reason: "stop" or "length" with the last piece, None before.
    version: Updates behind the weights.
  """

  ids: np.ndarray
  logp: np.ndarray
  stop_reason: types.StopReason | None = None
  version: int | None = None


@dataclasses.dataclass(eq=False)
class _Job:
  """One answer that is asked for.

  Attributes:
    request: What is asked for; its session is chosen when it starts.
    loop: The event loop of whoever asked.
    pieces: Where the answer goes; an exception ends it.
    sent: Tokens that went there.
    cut: Whether nobody wants the rest.
  """

  request: types.Request
  loop: asyncio.AbstractEventLoop
  pieces: asyncio.Queue
  sent: int = 0
  cut: bool = False


def _hand_over(pieces: Sequence[tuple[_Job, Piece | BaseException]]) -> None:
  """Gives pieces to their event loops, each of which is woken once."""
  by_loop = collections.defaultdict(list)
  for job, piece in pieces:
    by_loop[job.loop].append((job, piece))
  for loop, its in by_loop.items():
    try:
      loop.call_soon_threadsafe(_put, its)
    except RuntimeError:  # The loop is closed: its server has ended.
      for job, _ in its:
        job.cut = True


def _put(pieces: Sequence[tuple[_Job, Piece | BaseException]]) -> None:
  for job, piece in pieces:
    job.pieces.put_nowait(piece)


class Scheduler:
  """Answers requests of any number of connections with one engine.

  Sessions of the engine stay when their answer has ended, so that of a prompt
  that goes on with a conversation only what is new is read: it takes the
  session whose tokens it begins with, else a free one or the one used longest
  ago.

  Attributes:
    counts: Requests "answered", "cancelled" and "refused", and tokens "prompt"
      (asked for), "read" (of those) and "sampled", so far.
  """

  def __init__(self, engine: StreamingEngine, *, max_waiting: int = 256):
    """Starts the thread.

    Args:
      engine: Has weights; nobody else uses it from now on.
      max_waiting: Most requests that wait for a slot.

    Raises:
      ValueError: `max_waiting` is below 1.
    """
    if max_waiting < 1:
      raise ValueError(f"max_waiting={max_waiting} must be at least 1")
    self._engine = engine
    self._max_waiting = max_waiting
    self._waiting: collections.deque[_Job] = collections.deque()
    self._running: dict[str, _Job] = {}
    # Tokens of the sessions without an answer under way, oldest first. There
    # may be hundreds, and bytes are compared faster than arrays.
    self._idle: dict[str, bytes] = {}
    self._numbers = itertools.count()
    self._changed = threading.Condition()
    self._closed = False
    self._held = 0
    self.counts: collections.Counter[str] = collections.Counter()
    self._thread = threading.Thread(
      target=self._run, name="scheduler", daemon=True
    )
    self._thread.start()

  @property
  def load(self) -> Mapping[str, int]:
    """How many requests are "running" and "waiting"."""
    with self._changed:
      return {"running": len(self._running), "waiting": len(self._waiting)}

  @property
  def alive(self) -> bool:
    """Whether requests are answered."""
    return not self._closed and self._thread.is_alive()

  async def answer(self, request: types.Request) -> AsyncIterator[Piece]:
    """The pieces of an answer as they are sampled; the last has a reason.

    Leaving the iterator, as an event loop does when a client hangs up, ends the
    sampling of the answer.

    Args:
      request: What is asked for; its session is not looked at.

    Raises:
      Full: too many requests wait.
      ValueError: the engine does not take the request.
      RuntimeError: the scheduler is closed, or its engine has failed.
    """
    job = _Job(request, asyncio.get_running_loop(), asyncio.Queue())
    with self._changed:
      if self._closed:
        raise RuntimeError("the scheduler is closed")
      if len(self._waiting) >= self._max_waiting:
        self.counts["refused"] += 1
        raise Full(f"{len(self._waiting)} requests wait already")
      self._waiting.append(job)
      self._changed.notify_all()
    try:
      while True:
        piece = await job.pieces.get()
        if isinstance(piece, BaseException):
          raise piece
        yield piece
        if piece.stop_reason is not None:
          return
    finally:
      with self._changed:
        job.cut = True
        if job in self._waiting:  # Nobody else has to wait for its turn.
          self._waiting.remove(job)
          self.counts["cancelled"] += 1

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Lets no answer begin inside of it, and waits for those under way.

    The engine belongs to whoever holds the scheduler, who may give it other
    weights; what it kept of earlier conversations is not used any more.
    """
    with self._changed:
      self._held += 1
      self._changed.wait_for(lambda: not self._running or not self.alive)
    try:
      yield
    finally:
      with self._changed:
        for session in self._idle:
          self._engine.release(session)
        self._idle.clear()
        self._held -= 1
        self._changed.notify_all()

  def close(self) -> None:
    """Ends the thread; answers under way end with an error."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    self._thread.join()

  def _run(self) -> None:
    try:
      while self._wait():
        self._start()
        self._hand_out(self._engine.poll())
      error: BaseException = RuntimeError("the server is stopping")
    except Exception as raised:
      _log.exception("the engine has failed")
      error = RuntimeError(f"the engine has failed: {raised}")
      with self._changed:
        self._closed = True
        self._changed.notify_all()
    _hand_over([(j, error) for j in (*self._running.values(), *self._waiting)])

  def _wait(self) -> bool:
    """Waits for work; returns False when closed."""
    with self._changed:
      self._changed.wait_for(
        lambda: (
          self._closed or self._running or (self._waiting and not self._held)
        )
      )
      return not self._closed

  def _start(self) -> None:
    """Gives free slots to those that wait, first come, first served."""
    for session, job in self._running.items():
      if job.cut:
        self._engine.cut(session)
    while len(self._running) < self._engine.num_slots:
      with self._changed:
        if not self._waiting or self._held:
          return
        job = self._waiting.popleft()
        if job.cut:
          self.counts["cancelled"] += 1
          continue
        session = self._session(job.request.prompt_ids)
        request = dataclasses.replace(job.request, session=session)
        try:
          self._engine.submit([request])
        except ValueError as error:
          _hand_over([(job, error)])
          continue
        # Only now: of a request that is refused the engine keeps nothing new,
        # and what a session held before it still holds.
        self._idle.pop(session, None)
        self._running[session] = job
      counters = self._engine.counters
      self.counts["prompt"] = counters.prompt_tokens
      self.counts["read"] = counters.prefill_tokens

  def _session(self, prompt_ids: np.ndarray) -> str:
    """The session that a prompt goes on with, or one that is free for it."""
    prompt = _bytes(prompt_ids)
    going_on = [
      (len(ids), session)
      for session, ids in self._idle.items()
      if prompt.startswith(ids)
    ]
    if going_on:
      return max(going_on)[1]
    if len(self._idle) + len(self._running) >= self._engine.num_slots:
      oldest = next(iter(self._idle))
      del self._idle[oldest]
      self._engine.release(oldest)
    return f"served-{next(self._numbers)}"

  def _hand_out(self, done) -> None:
    ended, more = [], []
    for request, response in done:
      ids, logp = response.response_ids, response.behaviour_logp
      with self._changed:
        job = self._running.pop(request.session)
        # The token that ended the answer has not been read.
        self._idle[request.session] = _bytes(request.prompt_ids) + _bytes(
          ids[:-1]
        )
        self._changed.notify_all()
      self.counts["sampled"] += len(ids)
      self.counts["cancelled" if job.cut else "answered"] += 1
      rest, reason = slice(job.sent, None), response.stop_reason
      ended.append(
        (job, Piece(ids[rest], logp[rest], reason, response.policy_version))
      )
    _hand_over(ended)  # First: what is asked of the engine now can fail.
    under_way = self._engine.so_far() if self._running else {}
    for session, (ids, logp) in under_way.items():
      job = self._running[session]
      if len(ids) > job.sent:
        rest, version = slice(job.sent, None), self._engine.version
        more.append((job, Piece(ids[rest], logp[rest], None, version)))
        job.sent = len(ids)
    _hand_over(more)


def _bytes(ids: np.ndarray) -> bytes:
  return ids.astype(np.int32, copy=False).tobytes()
