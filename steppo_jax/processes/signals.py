"""SIGTERM and SIGINT: stop at once, keep what is done, be started again."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

# Exit status of a run that was asked to stop and can go on; 2 is for options
# that are wrong, where starting again would not help.
RESTARTABLE = 42

# Below what clouds give between the warning and the end (30 seconds on GCP).
GRACE_S = 20.0

# Until the main thread is asked again after what it raised was lost, and what
# tells the watching thread to do so: the number of no signal.
_AGAIN_S = 0.05
_ASK_AGAIN = 0


class Stopped(BaseException):
  """The process was asked to stop.

  Not an `Exception`: what handles failures of an environment or of a file must
  not take it for one.

  Attributes:
    status: What the process is to exit with.
  """

  status = RESTARTABLE

  def __init__(self, by: str):
    super().__init__(by)

  @property
  def message(self) -> str:
    """One line for who started the process."""
    if self.status == RESTARTABLE:
      return f"stopped by {self}; the same command goes on"
    return f"error: stopped by {self}"


class Handler:
  """Turns the first signal into `Stopped` in the main thread.

  Code that must not be broken off runs inside `held()`. A thread that is deep
  in a compilation or in a transfer cannot be broken off at all: if the main
  thread has not raised `Stopped` after `grace_s`, the process ends with
  `RESTARTABLE` from a thread of its own. Nothing is lost by it that the last
  checkpoint does not bring back. The second SIGINT ends the process at once.

  Args:
    grace_s: Seconds that the main thread has.
    on_overdue: Called by the other thread before the end, to flush what can be.
  """

  def __init__(
    self,
    grace_s: float = GRACE_S,
    on_overdue: Callable[[], None] = lambda: None,
  ):
    self._grace_s = grace_s
    self.on_overdue = on_overdue
    self._held = 0
    self._number: int | None = None
    self._stopped: Stopped | None = None
    self._lost = False
    self._asking = threading.RLock()  # A handler may run inside it.
    self._answered = threading.Event()
    self._reader = self._writer = -1
    self._before: dict[int, object] = {}
    self._wakeup = -1
    self._hook = sys.unraisablehook
    self._watcher = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Handler":
    self._reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    # The interpreter writes here when a signal comes, even while the main
    # thread is inside a compiled function and runs no handler.
    self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    self._before = self.install()
    self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
    self._watcher.start()
    return self

  def install(self) -> dict[int, object]:
    """Takes the signals, again if a library has taken them meanwhile.

    Returns:
      What handled them before.
    """
    if self._number is not None:
      return {}  # One has come, and the next SIGINT ends the process.
    return {
      number: signal.signal(number, self._handle)
      for number in (signal.SIGTERM, signal.SIGINT)
    }

  def interrupt(self, stopped: Stopped | None = None) -> None:
    """Stops the main thread as a signal does; called by any thread.

    Args:
      stopped: What is raised there, None for the name of the signal. A signal
        that came before goes first.
    """
    if self._number is None:
      self._stopped = self._stopped or stopped
    os.kill(os.getpid(), signal.SIGTERM)

  def __exit__(self, *_) -> None:
    with self._asking:
      self._lost = False  # Nobody takes a signal after this.
      self._answered.set()
    sys.unraisablehook = self._hook
    for number, before in self._before.items():
      signal.signal(number, before)
    signal.set_wakeup_fd(self._wakeup)
    os.close(self._writer)  # Ends the thread.
    # It holds what `on_overdue` holds: arrays that a thread lets go of while
    # the interpreter ends make JAX abort the process.
    self._watcher.join()

  def _handle(self, number, _) -> None:
    if self._lost and not self._held:
      self._raise()
    if self._number is not None:
      return
    self._number = number
    # Whoever asks twice on a keyboard means it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not self._held:
      self._raise()

  def _dropped(self, unraisable) -> None:
    """Takes the place of `sys.unraisablehook`."""
    if not isinstance(unraisable.exc_value, Stopped):
      self._hook(unraisable)
      return
    self._lost = True
    # No thread is started in here: the main thread may hold a lock of theirs.
    os.write(self._writer, bytes([_ASK_AGAIN]))

  def _raise(self) -> None:
    with self._asking:
      self._lost = False
      self._answered.set()
    raise self._stopped or Stopped(signal.Signals(self._number).name)

  def _watch(self) -> None:
    stops = {signal.SIGTERM, signal.SIGINT}
    with open(self._reader, "rb", buffering=0) as reader:
      while numbers := reader.read(1):
        if numbers[0] == _ASK_AGAIN:
          time.sleep(_AGAIN_S)
          with self._asking:
            if self._lost:
              self._answered.clear()  # The grace begins anew.
              self.interrupt()
        elif numbers[0] in stops and not self._answered.wait(self._grace_s):
          self._end()

  def _end(self) -> None:
    with contextlib.suppress(BaseException):
      self.on_overdue()
    by, status = "", RESTARTABLE
    if self._stopped:
      by, status = f" by {self._stopped}", self._stopped.status
    then = ""
    if status == RESTARTABLE:
      then = "; the same command goes on from the last checkpoint"
    with contextlib.suppress(BaseException):
      sys.stderr.write(
        f"stopped{by} {self._grace_s:g} s after the signal{then}\n"
      )
      sys.stderr.flush()
    os._exit(status)

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """A signal that comes inside takes effect at the end.

    Raises:
      Stopped: one came.
    """
    self._held += 1
    try:
      yield
    finally:
      self._held -= 1
    if self._number is not None and not self._held:
      self._raise()
