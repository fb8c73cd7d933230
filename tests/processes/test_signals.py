"""A signal stops the main thread where it may, and ends it where it must."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from steppo_jax.processes import signals

PROGRAM = """
import os, signal, sys, threading, time
from steppo_jax.processes import signals
try:
  with signals.Handler(grace_s={grace}, on_overdue=lambda: print("flushed",
                       flush=True)) as handler:
{body}
except signals.Stopped as stopped:
  print("stopped", stopped, flush=True)
  sys.exit(signals.RESTARTABLE)
"""


def start(body, grace=5.0):
  lines = "\n".join(f"    {line}" for line in body.strip().split("\n"))
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM.format(grace=grace, body=lines)],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  return process


def end(process, timeout=20):
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


WAIT = """
print("ready", flush=True)
while True:
  time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_where_the_main_thread_is(number):
  process = start(WAIT)
  process.send_signal(number)
  code, out, _ = end(process)
  assert code == 42
  assert out == f"stopped {number.name}\n"


def test_what_is_held_is_finished_first():
  process = start("""
with handler.held():
  print("ready", flush=True)
  time.sleep(1.0)
  print("finished", flush=True)
print("never", flush=True)
""")
  process.send_signal(signal.SIGTERM)
  code, out, _ = end(process)
  assert code == 42
  assert out == "finished\nstopped SIGTERM\n"


def test_what_cannot_be_broken_off_is_left_after_the_grace():
  # Like a compilation: minutes in C, where no handler of Python runs.
  process = start(
    """
import hashlib
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
""",
    grace=0.5,
  )
  time.sleep(0.5)  # Until it is inside.
  process.send_signal(signal.SIGTERM)
  code, out, err = end(process)
  assert code == 42
  assert "goes on from the last checkpoint" in err
  assert out == "flushed\n"


def test_who_ends_late_for_anothers_failure_has_its_status():
  process = start(
    """
import hashlib
from steppo_jax.processes import exchange
lost = exchange.Lost("process 1, which failed: a full disk", 1)
threading.Timer(0.5, handler.interrupt, [lost]).start()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
""",
    grace=0.5,
  )
  code, out, err = end(process)
  assert (code, out) == (1, "flushed\n")
  assert "stopped by process 1, which failed: a full disk" in err
  assert "goes on" not in err


def test_the_second_interrupt_ends_it_at_once():
  process = start("""
with handler.held():
  print("ready", flush=True)
  try:
    while signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
      time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(30)
  finally:
    print("stopped", flush=True)
""")
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "asked\n"
  process.send_signal(signal.SIGINT)
  code, out, _ = end(process, timeout=10)
  assert code == -signal.SIGINT
  assert "stopped" not in out


COLLECT = """
import gc
def callback(phase, info):
  if phase == "start" and counts:
    counts.pop()
    print("dropped", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10**5):
      pass
counts = [0] * {times}
print("ready", flush=True)
time.sleep(0.3)  # Until it is read: what comes with it would be lost.
gc.callbacks.append(callback)
for _ in range(1000):
  gc.collect()
  time.sleep(0.01)
print("never", flush=True)
"""


LATE = """
class Late:
  def __del__(self):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10**5):
      pass
print("ready", flush=True)
time.sleep(0.3)
Late()
"""


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_raised_inside_the_collector_is_raised_again(times):
  code, out, err = end(start(COLLECT.format(times=times)))
  assert code == 42, err
  # Python drops the first; a later one may come between two collections.
  assert out.startswith("dropped\n")
  assert out.endswith("stopped SIGTERM\n")
  assert "never" not in out


def test_what_is_raised_where_an_object_ends_is_raised_again():
  code, out, err = end(start(LATE + """
print("dropped", flush=True)
time.sleep(30)
print("never", flush=True)
"""))  # fmt: skip
  assert code == 42, err
  assert out == "dropped\nstopped SIGTERM\n"


def test_what_is_lost_does_not_break_what_is_held():
  code, out, err = end(start(LATE + """
with handler.held():
  time.sleep(1.0)
  print("finished", flush=True)
print("never", flush=True)
"""))  # fmt: skip
  assert code == 42, err
  assert out == "finished\nstopped SIGTERM\n"


def test_other_exceptions_that_are_dropped_are_still_told():
  process = start("""
class Late:
  def __del__(self):
    raise ValueError("told")
print("ready", flush=True)
Late()
""")
  code, _, err = end(process)
  assert code == 0
  assert "ValueError: told" in err


def test_its_thread_does_not_outlive_it():
  # jax 0.10.2 aborts a process (status 134) whose thread is still letting go of
  # arrays while the interpreter ends.
  before = set(threading.enumerate())
  with signals.Handler():
    (watcher,) = set(threading.enumerate()) - before
  assert not watcher.is_alive()


def test_what_was_there_is_put_back():
  before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
  hook = sys.unraisablehook
  with signals.Handler():
    assert signal.getsignal(signal.SIGTERM) not in before
    assert sys.unraisablehook != hook
  assert sys.unraisablehook == hook
  assert before == [
    signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)
  ]


def test_what_handles_errors_does_not_take_it():
  def careless():
    with contextlib.suppress(Exception):
      signal.raise_signal(signal.SIGTERM)

  with signals.Handler(), pytest.raises(signals.Stopped):
    careless()
