"""Agents as processes: each plays one episode, and writes what it was worth.

This module imports no JAX.
"""

import contextlib
import errno
import json
import os
import shlex
import shutil
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
# Seconds for its input to come to an end when an agent has ended.
_WRITE_S = 1.0
# Bytes of a variable, with its name and an end, that Linux hands to a program.
_LONGEST_VARIABLE = 1 << 17


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
      variables: Of the process, beside those of this one. One that is too
        long for the system is left out.
      text: Goes to its standard input.
      on_line: Takes each line of its output that is a JSON object; raises
        ValueError for one that it cannot take.

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
      writer = threading.Thread(
        target=_write, args=(process, text), daemon=True
      )
      clock.start()
      writer.start()
      try:
        fault = _read(process, on_line)
        if fault is not None:
          _kill(process)
        status = process.wait()
      finally:
        clock.cancel()
        # What it has started may outlive it.
        _kill(process)
        # A program that it has started may hold its input, and read nothing.
        writer.join(_WRITE_S)
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
        self._bounded(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=_inherited(variables) | _short(variables),
        start_new_session=True,
      )
      self._running.add(process)
    return process

  def _bounded(self) -> list[str]:
    """The command under its memory limit, which it has before it begins.

    Raises:
      FileNotFoundError: there is no such program, which a shell would tell in
        words of its own.
    """
    size = self._config.memory_mb
    if size is None:
      return self._command
    if shutil.which(self._command[0]) is None:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    limited = 'ulimit -v "$0" && exec "$@"'
    return ["/bin/sh", "-c", limited, str(size << 10), *self._command]

  def close(self) -> None:
    """Kills what runs; nothing is started any more."""
    with self._lock:
      self._closed = True
      for process in self._running:
        _kill(process)


def _inherited(own: Mapping[str, str]) -> dict[str, str]:
  """The variables of this process, but for its secret and an agent's own."""
  hidden = {SECRET, *own}
  return {k: x for k, x in os.environ.items() if k not in hidden}


def _short(variables: Mapping[str, str]) -> dict[str, str]:
  """Those variables that a program can be started with."""
  size = lambda name: len(os.fsencode(f"{name}={variables[name]}")) + 1
  return {k: x for k, x in variables.items() if size(k) <= _LONGEST_VARIABLE}


def _write(process, text) -> None:
  """Writes a text while the output is read: either may wait for the other."""
  with contextlib.suppress(OSError), process.stdin:  # It may not read.
    process.stdin.write(text.encode())


def _read(process, on_line) -> str | None:
  """Reads the output; returns what is wrong with it."""
  goes_on = False
  while line := process.stdout.readline(_LONGEST_LINE):
    begins, goes_on = not goes_on, not line.endswith(b"\n")
    if not (begins and line.lstrip().startswith(b"{")):
      continue
    try:
      if goes_on and len(line) == _LONGEST_LINE:
        raise ValueError(f"a line of more than {_LONGEST_LINE} bytes")
      found = _object(line)
      if found is not None:
        on_line(found)
    except (ValueError, RecursionError) as error:
      return f"AgentOutput: {error}"
  return None


def _object(line: bytes) -> dict[str, Any] | None:
  """What a line says, None if it is not JSON.

  Raises:
    ValueError: a number has too many digits.
    RecursionError: it is nested too deep.
  """
  try:
    return json.loads(line)
  except (json.JSONDecodeError, UnicodeDecodeError):
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
