"""Environments that misbehave, for the tests of worker processes."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np

from steppo_jax import types


class Echo:
  """Answers what it is told, and does what a few words ask for."""

  def __init__(self, *, at_start="", mark=None):
    if at_start == "raise":
      raise ValueError("cannot be made")
    if at_start == "die":
      os._exit(3)
    if at_start == "hang":
      time.sleep(3600)
    if mark is not None:
      with open(mark, "a") as file:
        file.write(f"{os.getpid()}\n")
    self.task = None
    self.texts = []

  def reset(self, task, seed):
    self.task, self.texts = task, []
    if task.payload.get("do"):
      self.act(task.payload["do"])
    return types.TimeStep(f"{task.uid} {seed}", 0.0, False, False, {})

  def step(self, text):
    info = {"won": np.bool_(True), "commands": ("a", "b"), "pid": os.getpid()}
    observation = self.act(text) or text
    self.texts.append(text)
    return types.TimeStep(
      observation, np.float32(0.5), np.bool_(False), False, info
    )

  def act(self, text):
    word, _, rest = text.partition(" ")
    return getattr(self, f"do_{word}", lambda _: None)(rest)

  def do_modules(self, _):
    return " ".join(sorted(sys.modules))

  def do_raise(self, rest):
    raise OSError(rest)

  def do_exit(self, rest):
    sys.exit(int(rest))

  def do_die(self, rest):
    print("last words")
    os._exit(int(rest))

  def do_segfault(self, _):
    os.kill(os.getpid(), signal.SIGSEGV)

  def do_hang(self, _):
    time.sleep(3600)

  def do_hold(self, _):
    """Holds the interpreter without end, as foreign code may."""
    re.match("(a+)+b", "a" * 64)

  def do_stopped(self, _):
    os.kill(os.getpid(), signal.SIGSTOP)

  def do_eat(self, rest):
    return str(len(bytearray(int(rest) << 20)))

  def do_print(self, rest):
    print("noise " * int(rest))
    os.write(1, b"\0\0\0\5hello")
    os.write(2, b"\xff\xfe not text\n")
    print("more noise", file=sys.stderr)

  def do_child(self, _):
    child = subprocess.Popen(["sleep", "3600"])
    return str(child.pid)

  def do_closefds(self, _):
    os.closerange(0, 256)

  def do_long(self, rest):
    return "z" * int(rest)

  def close(self):
    if self.texts[-1:] == ["cling"]:
      time.sleep(3600)


class Bad(Echo):
  """Answers that are no answers."""

  def step(self, text):
    observation, reward = {
      "bytes": (b"x", 0.0),
      "nan": ("x", float("nan")),
      "object": ("x", 0.0),
    }[text]
    info = {"x": object()} if text == "object" else {}
    return types.TimeStep(observation, reward, False, False, info)
