"""What every token was worth, computed by a process of its own.

Advantages, values and ratios need the policy and the critic, which a viewer
does not load: `python -m steppo_jax credit RUN --update U` computes those of an
update from the nearest checkpoint and writes them into the run folder, where
`storage.credit` reads them.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from steppo_jax.storage import credit

COMMAND = (sys.executable, "-m", "steppo_jax", "credit")
# Last lines of what it said when it failed.
_TOLD = 12


class Jobs:
  """Computes the credit of updates of one run, one at a time.

  Args:
    run: The run folder.
    command: What computes; RUN, "--update", the number and "--json" stand
      behind it. It tells how far it is in lines of JSON.
  """

  def __init__(self, run: pathlib.Path, command: Sequence[str] = COMMAND):
    self._run, self._command = run, tuple(command)
    self._lock = threading.Lock()
    self._state: dict[int, dict[str, Any]] = {}
    self._process: subprocess.Popen | None = None
    self._thread: threading.Thread | None = None

  def path(self, update: int) -> pathlib.Path:
    """Where the credit of an update lies."""
    return credit.path_of(self._run, update)

  def state(self) -> dict[int, dict[str, Any]]:
    """Progress or error by update, of what was asked for here."""
    with self._lock:
      return {update: dict(one) for update, one in self._state.items()}

  def start(self, update: int) -> None:
    """Begins to compute an update, unless that is under way.

    Raises:
      ValueError: another update is being computed.
    """
    with self._lock:
      running = [u for u, one in self._state.items() if one["busy"]]
      if update in running:
        return
      if running:
        raise ValueError(
          f"the credit of update {running[0]} is being computed: wait for its "
          "end"
        )
      self._state[update] = {"busy": True, "done": 0, "total": 0, "error": ""}
      self._thread = threading.Thread(
        target=self._compute, args=(update,), daemon=True
      )
      self._thread.start()

  def close(self) -> None:
    """Ends what is being computed."""
    with self._lock:
      process, thread = self._process, self._thread
    if process is not None and process.poll() is None:
      process.terminate()
    if thread is not None:
      thread.join(10)

  def _compute(self, update: int) -> None:
    asked = [str(self._run), "--update", str(update), "--json"]
    command = [*self._command, *asked]
    error = ""
    try:
      with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace",
      ) as process:  # fmt: skip
        with self._lock:
          self._process = process
        told = collections.deque(maxlen=_TOLD)
        reader = threading.Thread(
          target=lambda: told.extend(process.stderr), daemon=True
        )
        reader.start()
        for line in process.stdout:
          self._advance(update, line)
        status = process.wait()
        reader.join()
      if status:
        error = "".join(told).strip() or f"it ended with status {status}"
      elif not self.path(update).is_file():
        error = f"it ended without {self.path(update).name}"
    except OSError as raised:
      error = str(raised)
    with self._lock:
      self._process = None
      self._state[update] |= {"busy": False, "error": _plain(error)}

  def _advance(self, update: int, line: str) -> None:
    try:
      told = json.loads(line)
      found = {"done": int(told["done"]), "total": int(told["total"])}
    except (ValueError, KeyError, TypeError):
      return  # Something else was printed.
    with self._lock:
      self._state[update] |= found


def _plain(text: str) -> str:
  """Without the colours of a terminal."""
  return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Reader:
  """Reads the credit of episodes, the last files staying open in memory."""

  def __init__(self):
    self._known: dict[tuple, credit.Credit] = {}
    self._lock = threading.Lock()

  def of(self, path: pathlib.Path, uid: str) -> dict[str, Any] | None:
    """The credit of an episode, JSON-able.

    Args:
      path: The file of its update.
      uid: Of the episode.

    Returns:
      `algorithm`, `checkpoint_update`, `steps` and `tokens`: lists by name, in
      which None stands for a number that the algorithm has not. None where
      there is no such file, or the episode is not in it.

    Raises:
      ValueError: the file cannot be read.
    """
    try:
      stat = path.stat()
    except OSError:
      return None
    key = str(path), stat.st_size, stat.st_mtime_ns
    with self._lock:
      found = self._known.get(key)
      if found is None:
        found = credit.read(path)
        if len(self._known) > 3:
          self._known.clear()
        self._known[key] = found
    if uid not in found.episodes:
      return None
    number = found.episodes.index(uid)
    steps = slice(*found.first_step[number : number + 2].tolist())
    first = found.first_token[steps.start : steps.stop + 1]
    tokens = slice(int(first[0]), int(first[-1]))
    return {
      "algorithm": found.algorithm,
      "checkpoint_update": int(found.checkpoint_update),
      "steps": {n: numbers(getattr(found, n)[steps]) for n in credit.OF_STEPS},
      "tokens": {
        n: numbers(getattr(found, n)[tokens]) for n in credit.OF_TOKENS
      },
      "first": (first - first[0]).tolist(),
    }


def numbers(values: np.ndarray) -> list[float | None]:
  """Numbers as JSON has them: None for those that are not finite."""
  return [x if abs(x) < np.inf else None for x in values.tolist()]
