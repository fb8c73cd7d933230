"""Agents as processes: each plays one episode, and writes what it was worth.

This module imports no JAX.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

from steppo_jax.rollout import entry
from steppo_jax.rollout.options import AgentConfig

# The variable that opens the gateway for whoever begins sessions.
SECRET = "STEPPO_API_KEY"
# Bytes of a line of output that are read, and of errors that are told.
_LONGEST_LINE, _TOLD = 1 << 20, 2000


class Agents:
  """Starts the processes of one command; any thread may call `run`."""

  def __init__(self, config: AgentConfig):
    """Reads the command, or what stands for it.

    Raises:
      ValueError: there is none or there are two, its quotes do not end, or the
        callable has no such name.
    """
    if bool(config.command) == bool(config.entry):
      raise ValueError(
        'rollout.source=agents needs agents.command, such as "python agent.py",'
        " or agents.entry, such as package.module:function, and not both"
      )
    try:
      self._command = shlex.split(config.command)
    except ValueError as error:
      raise ValueError(f"agents.command={config.command!r}: {error}") from error
    if config.entry:
      entry.parts(config.entry)
      self._command = [sys.executable, "-m", entry.__name__, config.entry]
    self._config = config
    self._running: set[subprocess.Popen] = set()
    self._closed = False
    self._lock = threading.Lock()

  def run(
    self,
    variables: Mapping[str, str],
    text: str,
    on_line: Callable[[dict[str, Any]], None],
  ) -> str | None:
    """Runs the command to its end.

    Args:
      variables: Of the process, beside those of this one.
      text: Goes to its standard input.
      on_line: Takes each line of its output that is a JSON object.

    Returns:
      What went wrong, as "Cause: what", None if it ended with status 0.
    """
    with tempfile.TemporaryFile() as errors:
      try:
        process = self._start(variables, errors)
      except OSError as error:
        return f"AgentStart: {self._command[0]}: {error.strerror}"
      late = threading.Event()

      def end():
        late.set()
        _kill(process)

      clock = threading.Timer(self._config.seconds, end)
      clock.start()
      try:
        fault = _talk(process, text, on_line)
        if fault is not None:
          _kill(process)
        status = process.wait()
      finally:
        clock.cancel()
        # What it has started may outlive it.
        _kill(process)
        process.stdout.close()
        with self._lock:
          self._running.discard(process)
      if late.is_set():
        return f"AgentTimeout: not done after {self._config.seconds} s"
      if fault is not None:
        return fault
      return _ending(status, errors)

  def _start(self, variables, errors) -> subprocess.Popen:
    with self._lock:
      if self._closed:
        raise OSError(0, "no more agents are started")
      process = subprocess.Popen(
        self._command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=_inherited() | dict(variables),
        start_new_session=True,
      )
      self._running.add(process)
    if self._config.memory_mb is not None:
      import resource

      size = self._config.memory_mb << 20
      with contextlib.suppress(OSError):  # It has ended already.
        resource.prlimit(process.pid, resource.RLIMIT_AS, (size, size))
    return process

  def close(self) -> None:
    """Kills what runs; nothing is started any more."""
    with self._lock:
      self._closed = True
      for process in self._running:
        _kill(process)


def _inherited() -> dict[str, str]:
  """The variables of this process, but for its secret."""
  return {k: x for k, x in os.environ.items() if k != SECRET}


def _talk(process, text, on_line) -> str | None:
  """Writes and reads; returns what is wrong with the output."""
  with contextlib.suppress(OSError), process.stdin:  # It may not read.
    process.stdin.write(text.encode())
  while line := process.stdout.readline(_LONGEST_LINE):
    try:
      found = json.loads(line)
    except ValueError:
      continue
    if isinstance(found, dict):
      try:
        on_line(found)
      except ValueError as error:
        return f"AgentOutput: {error}"
  return None


def _kill(process: subprocess.Popen) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)


def _ending(status: int, errors) -> str | None:
  if status == 0:
    return None
  size = errors.seek(0, os.SEEK_END)
  errors.seek(max(0, size - _TOLD))
  lines = errors.read().decode("utf-8", "replace").strip().splitlines()
  last = lines[-1] if lines else ""
  if status < 0:
    return f"AgentKilled: by signal {-status} {last}".rstrip()
  return f"AgentExit: status {status} {last}".rstrip()
