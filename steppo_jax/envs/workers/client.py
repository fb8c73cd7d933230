"""A worker process seen from its parent: start, call, kill."""

import collections
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import steppo_jax
from steppo_jax.envs import base
from steppo_jax.envs.workers import worker
from steppo_jax.processes import frames, waits

# How much of what a worker prints is kept, in bytes.
LOG_BYTES = 16_384

_MAIN = (
  "from steppo_jax.envs.workers import worker; "
  "worker.main(int(sys.argv[1]), int(sys.argv[2]))"
)
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); " + _MAIN
# In another interpreter this package is ours and everything else its own, also
# where the variables `_OURS` name packages of this one.
_OURS = ("PYTHONPATH", "PYTHONHOME")
_BOOT_ELSEWHERE = (
  "import sys; from importlib import util; "
  "spec = util.spec_from_file_location('steppo_jax', sys.argv[3]); "
  "sys.modules[spec.name] = module = util.module_from_spec(spec); "
  "spec.loader.exec_module(module); " + _MAIN
)
# Linear algebra in many workers at once: a thread each is what there is, and a
# thread's address space counts against the memory limit.
_ONE_THREAD = {
  name: "1"
  for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
}


class Worker:
  """One worker process, seen from its parent; a call at a time.

  Attributes:
    pid: Of the process, which leads a process group of its own.
    answered: Whether it has ever answered a reset.
    revoked: Whether it was taken from the episode that held it.
    sound: Whether its last call was answered.

  Args:
    number: Told to the process in `worker.NUMBER`.
    recipe: Of the environment.
    start_s: Seconds to start and make the environment.
    memory_mb: Address space in MiB, None for no limit.
    python: Of another interpreter, which has what the environment needs and
      NumPy; None for this one, with the same packages.

  Raises:
    EnvError: it did not come up.
  """

  def __init__(
    self,
    number: int,
    recipe: base.Recipe,
    *,
    start_s: float,
    memory_mb: int | None,
    python: str | None = None,
  ):
    self.answered = False
    self.revoked = False
    self.sound = True
    self._lock = threading.RLock()
    self._ending = threading.Lock()
    self._stream = frames.Stream(worker.MAX_FRAME)
    self._log = collections.deque(maxlen=LOG_BYTES)
    self._socket, theirs = socket.socketpair()
    log, their_log = os.pipe()
    self._log_pipe = open(log, "rb", buffering=0)  # noqa: SIM115
    their_end, lifeline = os.pipe()
    self._lifeline = open(lifeline, "wb", buffering=0)  # noqa: SIM115
    descriptors = (theirs.fileno(), their_end)
    try:
      self._process = subprocess.Popen(
        _command(python, descriptors),
        stdin=subprocess.DEVNULL, stdout=their_log, stderr=their_log,
        pass_fds=descriptors, start_new_session=True,
        env=_environment(python) | {worker.NUMBER: str(number)},
      )  # fmt: skip
    except OSError as error:
      self._close_ends()
      raise base.EnvDied(f"no worker process: {error}") from error
    finally:
      theirs.close()
      os.close(their_log)
      os.close(their_end)
    self.pid = self._process.pid
    try:
      self.call(
        "start", start_s, target=recipe.target,
        options=dict(recipe.options), memory_mb=memory_mb,
      )  # fmt: skip
    except BaseException:
      self.kill()
      raise

  @property
  def alive(self) -> bool:
    """Whether the process still runs.

    It is left unreaped, so that its number stays its own until its group has
    been killed.
    """
    if self._process.returncode is not None:
      return False
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
      return os.waitid(os.P_PID, self.pid, options) is None
    except ChildProcessError:
      return False  # Reaped by someone else.

  @property
  def log(self) -> str:
    """The last of what the worker printed."""
    return bytes(self._log).decode("utf-8", "replace")

  def call(self, operation: str, seconds: float, **arguments: Any) -> Any:
    """Sends one message and waits for its answer.

    After any error but `EnvRaised` the worker is of no more use.

    Raises:
      EnvError: see `base`.
      TypeError: the arguments are not JSON-able.
    """
    frame = worker.encode({"op": operation, **arguments})
    deadline = time.monotonic() + seconds
    with self._lock:
      if self._socket.fileno() < 0:
        raise self._death(operation)
      self.sound = False
      try:
        self._socket.settimeout(seconds)
        self._socket.sendall(frame)
        whom = f"worker process {self.pid}"
        with waits.on(waits.ENVIRONMENTS, whom, f"an answer to {operation}"):
          answer = self._receive(deadline)
        self.sound = True
      except TimeoutError:
        raise base.EnvTimeout(
          f"no answer to {operation} within {seconds:g} s{self._last_words()}"
        ) from None
      except OSError:
        raise self._death(operation) from None
      except (ValueError, RecursionError) as error:
        raise base.EnvBadAnswer(f"{operation}: {error}") from error
    if "ok" in answer:
      return answer["ok"]
    if answer["memory"]:
      raise base.EnvOutOfMemory(f"{operation}: {answer['message']}".strip(": "))
    raise base.EnvRaised(answer["error"], answer["message"])

  def _receive(self, deadline):
    """The next frame; OSError if the worker is gone, TimeoutError if late."""
    poll = select.poll()
    poll.register(self._socket, select.POLLIN)
    poll.register(self._log_pipe, select.POLLIN)
    while (found := self._stream.next()) is None:
      left = deadline - time.monotonic()
      if left <= 0:
        raise TimeoutError
      for descriptor, _ in poll.poll(1000 * left):
        if descriptor == self._log_pipe.fileno():
          printed = os.read(descriptor, 1 << 16)
          self._log.extend(printed[-LOG_BYTES:])
          if not printed:  # Closed, which the environment may do.
            poll.unregister(descriptor)
          continue
        data = self._socket.recv(1 << 20)
        if not data:
          raise ConnectionResetError
        self._stream.add(data)
    return found[0]

  def _death(self, operation):
    """The error that says how the process ended."""
    if self.revoked:
      return base.EnvLeaseLost(f"the worker was taken away before {operation}")
    self.kill(grace_s=0.5)
    status = self._process.returncode
    if status == worker.OUT_OF_MEMORY:
      return base.EnvOutOfMemory(f"{operation}: the worker ran out of memory")
    how = f"status {status}"
    if status < 0:
      with contextlib.suppress(ValueError):
        how = signal.Signals(-status).name
    return base.EnvDied(
      f"the worker ended with {how} in {operation}{self._last_words()}"
    )

  def _last_words(self):
    self._drain()
    words = " ".join(self.log[-300:].split())
    return f"; it last printed: {words}" if words else ""

  def _drain(self):
    with contextlib.suppress(OSError, ValueError):
      os.set_blocking(self._log_pipe.fileno(), False)
      while printed := os.read(self._log_pipe.fileno(), 1 << 16):
        self._log.extend(printed[-LOG_BYTES:])

  def ask_to_close(self) -> None:
    """Sends the message that ends the worker; waits for nothing."""
    with contextlib.suppress(OSError):
      self._socket.setblocking(False)
      self._socket.sendall(worker.encode({"op": "close"}))

  def kill(self, *, grace_s: float = 0.0) -> None:
    """Ends the worker and all that it started; reaps it. Once is enough.

    Args:
      grace_s: Seconds that it has to end by itself.
    """
    deadline = time.monotonic() + grace_s
    with self._ending:
      while self.alive and time.monotonic() < deadline:
        time.sleep(0.005)
      if self._process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
          os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
    # A call under way in another thread has seen the end and lets go.
    with self._lock:
      self._drain()
      self._close_ends()

  def _close_ends(self):
    for end in (self._socket, self._log_pipe, self._lifeline):
      end.close()


def _environment(python: str | None) -> dict[str, str]:
  found = _ONE_THREAD | os.environ
  if python is not None:
    for name in _OURS:
      found.pop(name, None)
  return found


def _command(python: str | None, descriptors: tuple[int, int]) -> list[str]:
  """What starts the inside of a worker."""
  numbers = [str(n) for n in descriptors]
  if python is not None:
    return [python, "-u", "-c", _BOOT_ELSEWHERE, *numbers, steppo_jax.__file__]
  paths = json.dumps([p for p in sys.path if isinstance(p, str)])
  return [sys.executable, "-u", "-c", _BOOT, *numbers, paths]
