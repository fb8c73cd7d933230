"""One session, and the episode that becomes of it."""

import asyncio
import dataclasses
import functools
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from steppo_jax import types
from steppo_jax.prompts import base
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.serving import answers, session_keys, session_schema
from steppo_jax.serving import turns as turns_lib


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of sessions.

  Attributes:
    live: Most sessions that are not finished.
    turns: Most calls of one session.
    writes: Most rewards and labels of one session.
    idle_s: Seconds without a call after which a session counts as lost.
    lasting_s: Seconds after which it does in any case.
    kept: Finished sessions that still tell what came of them.
    max_new_tokens: Of every answer that is not asked to be shorter; a prompt
      that leaves no room for so many ends the session. None for what fits.
    temperature: Of every answer, whatever is asked for, so that the learner
      knows it; None for what is asked for.
    by_header: Whether a call with an unknown X-Session-ID begins a session.
    own_tasks: Whether who begins a session may bring a task.
  """

  live: int = 1024
  turns: int = 256
  writes: int = 4096
  idle_s: float = 600.0
  lasting_s: float = 6 * 3600.0
  kept: int = 4096
  max_new_tokens: int | None = None
  temperature: float | None = None
  by_header: bool = False
  own_tasks: bool = True


@dataclasses.dataclass(eq=False)
class Session:
  """One session.

  Attributes:
    ticket: The episode in the pool.
    owner: Who plays it, for the pool.
    turns: The calls.
    began: When it was made, on the clock of `Sessions`.
    touched: When it was last used.
    renewed: When its lease in the pool was last put off.
    rewards: By step and name.
    facts: What else is known of steps: "invalid" and "anchor".
    labels: To find it by.
    notes: Text that is kept with it.
    writes: Digests of what was sent, and the answers.
    cut: The prompt of a call that was refused at a limit, if it was the last.
    finished: Digest of what finished it, and the answer; b"" where the pool had
      given the episode to somebody else.
    kept: Its steps as they are told, JSON, when the turns are gone.
    closing: Held while it is being finished.
    tasks: What samples for it.
  """

  ticket: pool_lib.Ticket
  owner: str
  turns: turns_lib.Turns
  began: float
  touched: float
  renewed: float
  rewards: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
  facts: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
  labels: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: str = ""
  writes: list[tuple[bytes, dict]] = dataclasses.field(default_factory=list)
  cut: np.ndarray | None = None
  finished: tuple[bytes, dict] | None = None
  kept: str | None = None
  closing: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
  tasks: set[asyncio.Task] = dataclasses.field(default_factory=set)

  @property
  def uid(self) -> str:
    """The episode's name, and the session's."""
    return self.ticket.uid

  @property
  def opened(self) -> session_keys.Opened:
    """What its key opens."""
    return session_keys.Opened(self.uid, self.ticket.attempt)

  @property
  def reward(self) -> float:
    """The sum of all rewards."""
    return sum(sum(named.values()) for named in self.rewards.values())

  def told(self) -> dict[str, Any]:
    """What a client is told of it."""
    return {
      "id": self.uid,
      "state": "finished" if self.finished else "running",
      "task": types.task_to_json(self.ticket.task),
      "seed": self.ticket.seed,
      "attempt": self.ticket.attempt,
      "order": len(self.writes),
      "reward": self.reward,
      "labels": self.labels,
      "steps": self._steps() if self.kept is None else json.loads(self.kept),
    }

  def _steps(self) -> list[dict[str, Any]]:
    numbers = {None: None} | {t: t.number for t in self.turns.all}
    return [
      {
        "step": t.number,
        "after": numbers.get(t.plan.parent),
        "prompt_tokens": len(t.plan.ids),
        "response_tokens": len(t.answer.ids),
        "finish_reason": t.answer.finish,
        "reward": sum(self.rewards.get(t.number, {}).values()),
      }
      for t in self.turns.all
    ]

  def let_go(self) -> None:
    """Drops what nobody asks a finished session for: what was read and said."""
    self.kept = json.dumps(self._steps())
    self.turns.forget()
    self.facts.clear()
    self.cut, self.notes = None, ""

  def repeated(
    self,
    plan: turns_lib.Plan,
    settings: turns_lib.Settings,
    *,
    resent: bool,
    order: int | None,
  ) -> turns_lib.Turn | None:
    """The turn that a call asks for once more, None if it is a new one.

    Args:
      plan: What it reads.
      settings: How it is asked for.
      resent: Whether the client says that it has sent it before.
      order: The number of the step, where the client tells it; that decides.

    Raises:
      answers.Fault: the number is that of another step, or of none.
    """
    if order is None:
      return self.turns.repeated(plan, settings, resent=resent)
    if order == self.turns.next_number:
      return None
    for turn in self.turns.all:
      same = turn.settings == settings
      if turn.number == order and same and turn.reads(plan):
        return turn
    raise answers.Fault(
      409, f"step {order} was another call, or is not the next, which is "
      f"{self.turns.next_number}", "conflict",
    )  # fmt: skip

  def status(self, form: session_schema.Finish) -> str:
    """How it ended: "terminated", "truncated" or "error"."""
    if self.cut is not None and form.status == "ended":
      return "truncated"
    return "terminated" if form.status == "ended" else form.status

  def record(
    self, policy: answers.Policy, form: session_schema.Finish
  ) -> types.Trajectory:
    """The episode, as the learner reads it.

    A call whose answer nobody got, and nobody judged, is no step of it.

    Args:
      policy: What sampled it.
      form: How it ended.

    Raises:
      answers.Fault: the messages of a truncated one do not fit the template.
    """
    status, task = self.status(form), self.ticket.task
    kept = [
      turn
      for turn in self.turns.all
      if turn.delivered or turn.went_on or turn.number in self.rewards
    ]
    rewards = {n: sum(named.values()) for n, named in self.rewards.items()}
    if form.reward is not None and kept:
      last = kept[-1].number
      rewards[last] = rewards.get(last, 0.0) + form.reward
    error = None
    if status == "error":
      error = f"{form.cause}: {form.message}"
    elif not kept:
      error = "NoSteps: the session was finished without a step"
    steps = tuple(
      self._step(policy, turn, index, rewards.get(turn.number, 0.0))
      for index, turn in enumerate(kept)
    )
    if error is not None:
      return types.Trajectory(self.uid, task, steps, None, False, error)
    flag = {status: True}
    steps = (*steps[:-1], dataclasses.replace(steps[-1], **flag))
    final = None
    if status == "truncated":
      final = self._next_prompt(policy, form, kept[-1])[: policy.context]
    total = sum(step.reward for step in steps)
    success = total > 0 if form.success is None else form.success
    return types.Trajectory(
      self.uid, task, steps, final, success, scores=dict(form.scores)
    )

  def _next_prompt(self, policy, form, last) -> np.ndarray:
    """What the next call would have read."""
    if form.messages is not None:
      return self.turns.plan(form.messages, form.tools or last.tools).ids
    if self.cut is not None:
      return self.cut
    answer = base.closed(policy.tokenizer, last.response_ids)
    return np.concatenate([last.plan.ids, answer])

  def _step(self, policy, turn, index: int, reward: float) -> types.Step:
    ids, answer = turn.response_ids, turn.answer
    facts: Mapping[str, Any] = self.facts.get(turn.number, {})
    reading = answers.reading(policy, turn.tools, turn.plan.opened)
    return types.Step(
      prompt_ids=turn.plan.ids,
      response_ids=ids,
      response_mask=np.ones(len(ids), bool),
      behaviour_logp=np.array(answer.logp, np.float32),
      reward=float(reward),
      trajectory_uid=self.uid,
      step_index=index,
      group_uid=self.ticket.task.uid,
      policy_version=answer.version,
      stop_reason=answer.finish,
      anchor_obs=facts.get("anchor", ""),
      metadata={"invalid": facts.get("invalid", False)},
      reasoning_mask=base.reasoning_mask(
        policy.tokenizer, turn.plan.stop_ids, ids,
        reading.thoughts,
      ),
    )  # fmt: skip


def begin(
  pool: pool_lib.Pool,
  form: session_schema.Create,
  owner: str,
  seconds: float,
  uid: str | None = None,
) -> pool_lib.Ticket | None:
  """Begins the episode that a client asks for; None if no task waits.

  Args:
    pool: Has the episodes that wait; one of the client's own goes there first.
    form: What the client asks for.
    owner: Who plays it, for the pool.
    seconds: Until it counts as lost, unless it is renewed or finished.
    uid: What the same request has begun before; nothing else is begun then.

  Raises:
    pool.Full: the pool has no room for the client's own.
  """
  task, channel = form.wanted(), form.channel
  start = functools.partial(pool.start, owner, seconds, request=form.named)
  if task is None or uid is not None:
    return start(uid=uid, channel=channel)
  if form.group_size > 1:
    ticket = start(task_uid=task.uid, channel=channel)
    if ticket is not None:
      return ticket
  # The name is part of addresses and of keys.
  shown = re.sub(r"[^A-Za-z0-9_]+", "-", task.uid)[:64]
  # With a name, what was issued and could not be begun is there already.
  token = form.named[1] if form.named else secrets.token_hex(16)
  group = f"{shown}-{token[:12]}"
  key = tuple(form.key or np.frombuffer(secrets.token_bytes(8), "<u4"))
  key = tuple(map(int, key))
  alone = form.group_size == 1
  episodes = [
    (f"{group}-{j}", key if alone else (*key, j), j)
    for j in range(form.group_size)
  ]
  pool.issue(group, task, episodes, channel=channel or "train")
  return start(uid=episodes[0][0])


def lost() -> answers.Fault:
  """What is told of a session that is no more."""
  return answers.Fault(
    410, "the session is not under way here: it has ended, or its gateway was "
    "started anew and its task given to another. A request_id begins one "
    "session of a pool", "session_lost",
  )  # fmt: skip
