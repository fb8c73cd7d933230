"""Sessions: one agent at one task, recorded as an episode to be trained on.

Every call of the model is a step: the prompt, what was sampled, and the rewards
that the agent, or whoever judges it, sends for it. Steps stand in the order in
which the calls began, whichever branch of the conversation they are on, so that
a reward credits all calls before it.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries
from steppo_jax.serving import answers, schema, session_keys, session_schema
from steppo_jax.serving import session as session_lib
from steppo_jax.serving import turns as turns_lib
from steppo_jax.serving.session import Limits, Session

# A gateway counts an idle session as lost before the pool does.
_LEASES = 2


class Sessions:
  """The sessions of a gateway; all methods belong to its event loop.

  Attributes:
    pool: Where finished sessions go.
    keys: Their secrets.
    limits: Their bounds.
  """

  def __init__(
    self,
    policy: answers.Policy,
    pool: pool_lib.Pool,
    *,
    limits: Limits | None = None,
    clock=time.monotonic,
    lasting: bool = True,
  ):
    self._policy = policy
    self.pool = pool
    self.limits = limits or Limits()
    # Of those that do not last, a gateway that is started anew opens none.
    self.keys = session_keys.Keys(pool.file.path if lasting else None)
    self._clock = clock
    self._name = f"gateway-{secrets.token_hex(8)}"
    self._begun = itertools.count()
    self._live: dict[str, Session] = {}
    self._finished: dict[str, Session] = {}
    self._making = asyncio.Lock()
    self._ending: set[asyncio.Task] = set()

  async def create(self, form: session_schema.Create) -> Session:
    """Begins a session.

    Raises:
      answers.Fault: there are too many, the pool is full, no task waits, or the
        same `request_id` was used for something else, or for what is lost.
    """
    async with self._making:
      before = form.named and await self.request(form.request_id)
      if before is not None:
        if before.digest != form.named[1]:
          raise answers.Fault(
            409, f"request_id {form.request_id!r} was used for another session",
            "conflict", "request_id",
          )  # fmt: skip
        session = self.get(session_keys.Opened(before.uid, before.attempt))
        if session is not None:
          return session
      if len(self._live) >= self.limits.live:
        raise answers.Fault(
          429, f"{len(self._live)} sessions are under way already",
          "rate_limit_exceeded",
        )  # fmt: skip
      # The pool tells attempts at one episode apart by it.
      owner = f"{self._name}-{next(self._begun)}"
      ticket = await _in_thread(
        session_lib.begin, self.pool, form, owner,
        _LEASES * self.limits.idle_s, before and before.uid,
      )  # fmt: skip
      if ticket is None:
        none = answers.Fault(503, "no task waits to be done", "no_task")
        raise none if before is None else session_lib.lost()
      session = self.take(ticket, owner)
      session.labels |= form.labels
      session.notes = form.notes
      return session

  async def request(self, name: str) -> pool_entries.Request | None:
    """What a request of that name has begun, here or in a gateway before."""
    return await _in_thread(pool_entries.request, self.pool, name)

  def take(self, ticket: pool_lib.Ticket, owner: str) -> Session:
    """A session for an episode that was begun in the pool."""
    now = self._clock()
    session = Session(
      ticket, owner, turns_lib.Turns(self._policy), now, now, now
    )
    self._live[ticket.uid] = session
    return session

  def has(self, uid: str) -> bool:
    """Whether a session of that name is known here, finished or not."""
    return uid in self._live or uid in self._finished

  def get(self, opened: session_keys.Opened) -> Session | None:
    """A session, finished or not; None for one that is not known here."""
    found = self._live.get(opened.uid) or self._finished.get(opened.uid)
    return found if found and found.opened == opened else None

  async def ask(
    self,
    session: Session,
    asked: schema.ChatRequest,
    tools: Sequence[schema.Tool] | None,
    *,
    resent: bool = False,
    order: int | None = None,
  ) -> turns_lib.Turn:
    """The turn that answers a chat's call, which may be one that was before.

    Args:
      session: The session.
      asked: What the client sent.
      tools: What may be called.
      resent: Whether it says that it has sent it before.
      order: The number of the step, where the client tells it.

    Raises:
      answers.Fault: the session is finished, the call does not fit, or the
        number is not that of the next step.
    """
    self._check_live(session)
    plan = session.turns.plan(asked.messages, tools)
    settings = turns_lib.Settings(
      asked.limit, asked.temperature, asked.seed, asked.stops
    )
    turn = session.repeated(plan, settings, resent=resent, order=order)
    return turn or self._begin(session, plan, settings, tools)

  async def ask_ids(
    self,
    session: Session,
    ids: Sequence[int] | np.ndarray,
    settings: turns_lib.Settings,
    stop_ids: tuple[int, ...],
    *,
    resent: bool = False,
    order: int | None = None,
  ) -> turns_lib.Turn:
    """The turn that answers a call whose prompt is token ids; see `ask`."""
    self._check_live(session)
    plan = session.turns.plan_ids(np.asarray(ids, np.int64), stop_ids)
    turn = session.repeated(plan, settings, resent=resent, order=order)
    return turn or self._begin(session, plan, settings, None)

  def _begin(self, session, plan, settings, tools) -> turns_lib.Turn:
    number = session.turns.next_number
    try:
      wanted = self._wanted(session, plan, settings, number)
    except answers.Fault as fault:
      if fault.code in ("context_length_exceeded", "max_steps_exceeded"):
        session.cut = plan.ids
      raise
    session.cut = None
    turn = turns_lib.Turn(
      number, plan._replace(ids=wanted.prompt_ids), settings, wanted,
      answers.Answer(self._policy.tokenizer, plan.stop_ids, settings.stops),
      tools,
    )  # fmt: skip
    session.turns.begin(turn)
    task = asyncio.ensure_future(self._sample(session, turn))
    session.tasks.add(task)
    task.add_done_callback(session.tasks.discard)
    return turn

  def _wanted(self, session, plan, settings, number) -> types.Request:
    limits = self.limits
    if number >= limits.turns:
      raise answers.Fault(
        400, f"the session has had its {limits.turns} steps: finish it",
        "max_steps_exceeded",
      )  # fmt: skip
    temperature = settings.temperature
    longest = [n for n in (settings.limit, limits.max_new_tokens) if n]
    wanted = self._policy.request(
      plan.ids,
      limit=min(longest, default=None),
      temperature=(
        temperature if limits.temperature is None else limits.temperature
      ),
      seed=settings.seed,
      stop_ids=plan.stop_ids,
    )
    if settings.seed is None:
      key = (*session.ticket.key, number)
      wanted = dataclasses.replace(wanted, key=key)
    return wanted

  async def _sample(self, session: Session, turn: turns_lib.Turn) -> None:
    """Samples an answer to its end, whoever still reads it."""
    try:
      pieces = self._policy.scheduler.answer(turn.wanted)
      async with contextlib.aclosing(pieces):
        async for piece in pieces:
          turn.answer.add(piece)
          turn.pieces.append(piece)
          if turn.done:
            break
          turn.grew()
      session.turns.ended(turn)
      turn.grew()
    except Exception as error:
      session.turns.failed(turn, error)
    self._use(session)

  def _use(self, session: Session) -> None:
    """Puts the end of a session's time off."""
    session.touched = now = self._clock()
    if now - session.renewed < self.limits.idle_s / 3:
      return
    session.renewed = now
    task = asyncio.ensure_future(self._renew(session))
    session.tasks.add(task)
    task.add_done_callback(session.tasks.discard)

  async def _renew(self, session: Session) -> None:
    # What cannot be renewed is found out when it is finished.
    with contextlib.suppress(pool_lib.Lost, answers.Fault):
      until = _LEASES * self.limits.idle_s
      await _in_thread(self.pool.renew, session.uid, session.owner, until)

  def _check_live(self, session: Session) -> None:
    if session.finished is not None or session.closing.locked():
      raise answers.Fault(410, "the session is finished", "session_finished")
    self._use(session)

  def reward(
    self, session: Session, form: session_schema.Rewarded
  ) -> dict[str, Any]:
    """Takes a reward in; returns what the client is told.

    Raises:
      answers.Fault: there is no such step, the session is finished, or the
        order number is not the next.
    """

    def apply():
      done = [turn.number for turn in session.turns.all if turn.done]
      step = form.step
      if step is None and done:
        step = done[-1]
      if step not in done:
        raise answers.Fault(
          409, f"the session has no step {step}: it has {len(done)}",
          "no_such_step", "step",
        )  # fmt: skip
      named = session.rewards.get(step, {}) | {form.name: form.reward}
      if not abs(sum(named.values())) <= types.LARGEST_REWARD:
        raise answers.Fault(
          400, f"the rewards of step {step} add up to {sum(named.values())}",
          "invalid_request_error", "reward",
        )  # fmt: skip
      session.rewards[step] = named
      facts = {"invalid": form.invalid, "anchor": form.anchor}
      known = {name: x for name, x in facts.items() if x is not None}
      session.facts.setdefault(step, {}).update(known)
      return {"step": step, "reward": sum(named.values())}

    return self._written(session, form, apply)

  def label(
    self, session: Session, form: session_schema.Labelled
  ) -> dict[str, Any]:
    """Takes labels and notes in; see `reward`."""

    def apply():
      if len(session.labels | form.labels) > 32:
        raise answers.Fault(
          400, "a session has at most 32 labels", "invalid_request_error",
          "labels",
        )  # fmt: skip
      session.labels |= form.labels
      if form.notes is not None:
        session.notes = form.notes
      return {"labels": dict(session.labels)}

    return self._written(session, form, apply)

  def _written(self, session, form, apply) -> dict[str, Any]:
    """Does something once for each order number."""
    digest, count = session_schema.digest(form), len(session.writes)
    order = form.order
    if order is not None and order < count:
      before, found = session.writes[order]
      if before == digest:
        return found
    self._check_live(session)
    if order is not None and order != count:
      raise answers.Fault(
        409, f"order {order} is not that of the next write, which is {count}",
        "conflict", "order",
      )  # fmt: skip
    if count >= self.limits.writes:
      raise answers.Fault(
        400, f"the session has had {count} writes, which is the most",
        "invalid_request_error",
      )  # fmt: skip
    found = {"id": session.uid, **apply(), "order": count + 1}
    session.writes.append((digest, found))
    return found

  async def finish(
    self, session: Session, form: session_schema.Finish
  ) -> dict[str, Any]:
    """Hands a session over to the pool; returns when that holds it.

    Raises:
      answers.Fault: it was finished otherwise, the pool cannot be written, or
        the session's time was over before.
    """
    digest = session_schema.digest(form)
    async with session.closing:
      if session.finished is not None:
        before, found = session.finished
        if not before:
          raise answers.Fault(410, found["lost"], "session_lost")
        if before != digest:
          raise answers.Fault(
            409, "the session was finished in another way", "conflict"
          )
        return found
      if form.order not in (None, len(session.writes)):
        raise answers.Fault(
          409, f"order {form.order} is not {len(session.writes)}", "conflict",
          "order",
        )  # fmt: skip
      while session.tasks:
        await asyncio.wait(set(session.tasks))
      record = session.record(self._policy, form)
      labels = session.labels | form.labels
      notes = session.notes if form.notes is None else form.notes
      found = {
        "id": session.uid,
        "status": session.status(form) if record.error is None else "error",
        "error": record.error,
        "steps": len(record.steps),
        "reward": record.total_reward,
        "success": record.success,
      }
      try:
        await _in_thread(
          self.pool.finish, record, session.owner, labels=labels, notes=notes,
          receipt=json.dumps([_proof(session.opened, digest), found]),
        )  # fmt: skip
      except pool_lib.Lost as error:
        self._end(session, (b"", {"lost": str(error)}))
        raise answers.Fault(410, str(error), "session_lost") from error
      self._end(session, (digest, found))
      return found

  async def finished_before(
    self, opened: session_keys.Opened, form: session_schema.Finish
  ) -> dict[str, Any]:
    """What a session was finished with before this gateway was started.

    Raises:
      answers.Fault: it was not, or in another way: it is lost.
    """
    kept = await _in_thread(pool_entries.receipt, self.pool, opened.uid)
    proof, found = json.loads(kept) if kept else (None, None)
    if proof != _proof(opened, session_schema.digest(form)):
      raise session_lib.lost()
    return found

  def _end(self, session, finished) -> None:
    session.finished = finished
    session.let_go()
    if self._live.get(session.uid) is session:  # It may be another attempt.
      del self._live[session.uid]
    self._finished[session.uid] = session
    if len(self._finished) > self.limits.kept:
      del self._finished[next(iter(self._finished))]

  async def expire(self) -> None:
    """Ends sessions as failed that nobody has used for too long.

    One with an answer under way is in use. None waits for answers of others.
    """
    now = self._clock()
    for session in list(self._live.values()):
      if session.turns.sampling:
        self._use(session)
      late = now - session.began > self.limits.lasting_s
      idle = now - session.touched > self.limits.idle_s
      if (late or idle) and not session.closing.locked():
        ending = asyncio.create_task(self._expire(session))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
    await _in_thread(self.pool.expire)

  async def _expire(self, session: Session) -> None:
    form = session_schema.Finish(
      status="error", cause="SessionExpired", message="nobody finished it"
    )
    with contextlib.suppress(answers.Fault):
      await self.finish(session, form)

  @property
  def alive(self) -> bool:
    """Whether answers are sampled."""
    return self._policy.scheduler.alive

  def counts(self) -> dict[str, int]:
    """Numbers of live sessions, and of episodes in the pool by state."""
    return {"live": len(self._live)} | pool_entries.counts(self.pool)


def _proof(opened: session_keys.Opened, digest: bytes) -> str:
  return f"{opened.attempt} {digest.hex()}"


async def _in_thread(function: Callable, *args, **kwargs) -> Any:
  """Calls what may wait for the disk.

  Raises:
    answers.Fault: the pool is full, or cannot be written.
    pool.Lost: the pool has given the episode to somebody else.
  """
  try:
    return await asyncio.to_thread(function, *args, **kwargs)
  except pool_lib.Full as error:
    raise answers.Fault(429, str(error), "rate_limit_exceeded") from error
  except pool_lib.Lost:
    raise
  except RuntimeError as error:
    raise answers.Fault(503, str(error), "server_error") from error
