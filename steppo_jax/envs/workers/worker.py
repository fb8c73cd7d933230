"""The inside of a worker process: one environment behind a socket.

Messages are heads of `processes.frames`. The process imports no JAX. What the
environment prints goes elsewhere (a pipe that the parent reads), and every
process of the worker's group is killed when the parent is gone, whatever the
environment is doing at the time.
"""

import contextlib
import fcntl
import math
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.processes import frames

# Names the worker in its own environment variables: 0, 1, 2, ... as started.
NUMBER = "STEPPO_JAX_WORKER"
# Exit status of a worker that could not even say that its memory is used up.
OUT_OF_MEMORY = 86
# A longer frame is not an answer but an accident.
MAX_FRAME = 1 << 28


def encode(message: Mapping[str, Any]) -> bytes:
  """One frame. Text may hold anything, lone surrogates included.

  Raises:
    TypeError: the message is not JSON-able.
    ValueError: it is too long.
  """
  body = frames.pack(message, default=_plain)
  if len(body) > MAX_FRAME:
    raise ValueError(f"a message of {len(body)} bytes; at most {MAX_FRAME}")
  return frames.frame(body)


def _plain(value):
  """NumPy's numbers and arrays, mappings and tuples as JSON's own kinds."""
  if isinstance(value, Mapping):
    return dict(value)
  if hasattr(value, "tolist"):
    return value.tolist()
  if isinstance(value, set | frozenset):
    return sorted(value)
  raise TypeError(f"{type(value).__name__} is not JSON: {str(value)[:80]}")


def time_step_to_json(out: types.TimeStep) -> dict[str, Any]:
  """An answer as JSON-able data.

  Raises:
    TypeError: the observation is not text.
    ValueError: the reward is not a finite number.
  """
  if not isinstance(out.observation, str):
    raise TypeError(
      f"the observation is {type(out.observation).__name__}, not text"
    )
  reward = float(out.reward)
  if not math.isfinite(reward):
    raise ValueError(f"the reward is {reward}")
  return {
    "observation": out.observation,
    "reward": reward,
    "terminated": bool(out.terminated),
    "truncated": bool(out.truncated),
    "info": out.info,
  }


class _Server:
  """Answers the messages of one parent."""

  def __init__(self):
    self.env: types.Env | None = None

  def start(self, *, target, options, memory_mb):
    if memory_mb is not None:
      limit = int(memory_mb) << 20
      resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    self.env = base.Recipe(target, options).make()

  def reset(self, *, task, seed):
    return time_step_to_json(self.env.reset(types.task_from_json(task), seed))

  def step(self, *, text):
    return time_step_to_json(self.env.step(text))

  def close(self):
    if self.env is not None:
      self.env.close()


def _answer(server: _Server, message: dict[str, Any]) -> bytes:
  """The frame that answers a message, an exception told as such."""
  operation = message.pop("op")
  try:
    return encode({"ok": getattr(server, operation)(**message)})
  # SystemExit too: an environment that calls exit() has failed, and says so.
  except BaseException as error:
    told = isinstance(error, base.EnvRaised)
    kind = error.cause if told else type(error).__name__
    memory = isinstance(error, MemoryError)
    text = str(error)[:2000]
  return encode({"error": kind, "message": text, "memory": memory})


def _serve(connection: socket.socket) -> None:
  server, stream = _Server(), frames.Stream(MAX_FRAME)
  while True:
    found = stream.next()
    if found is None:
      data = connection.recv(1 << 16)
      if not data:
        return
      stream.add(data)
      continue
    message, _ = found
    closing = message["op"] == "close"
    connection.sendall(_answer(server, message))
    if closing:
      return


def _die_with_parent(lifeline: int) -> None:
  """Has this process group killed when the pipe's other end is closed.

  On Linux the kernel sends the signal, which works while foreign code holds the
  interpreter; elsewhere a thread waits.
  """
  if hasattr(fcntl, "F_SETSIG"):
    with contextlib.suppress(OSError):
      fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
      fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
      flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
      fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
  # The parent may have gone before the kernel was asked.
  threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: int) -> None:
  poll = select.poll()
  poll.register(lifeline, 0)
  poll.poll()
  os.killpg(0, signal.SIGKILL)


def main(connection: int, lifeline: int) -> None:
  """Serves one parent until it is done or gone.

  Args:
    connection: File descriptor of the socket that carries the frames.
    lifeline: File descriptor of a pipe that the parent holds open.
  """
  for descriptor in (connection, lifeline):
    # Programs that the environment starts must not hold them.
    os.set_inheritable(descriptor, False)
  _die_with_parent(lifeline)
  status = 0
  try:
    with socket.socket(fileno=connection) as sock:
      _serve(sock)
  except MemoryError:
    status = OUT_OF_MEMORY
  except OSError:
    status = 1  # The parent has hung up; there is nobody to tell.
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  # Not sys.exit: threads of the environment must not keep the process.
  os._exit(status)
