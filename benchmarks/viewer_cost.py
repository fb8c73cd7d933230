"""What it costs a run to be followed in the viewer.

  python benchmarks/viewer_cost.py [--quick] [--updates 50] [--block 5]

Two runs of one experiment with one seed do the same work, to the bit. They take
turns, a block of updates each, while the other one is stopped (SIGSTOP), so
that what the machine does besides falls on both alike. One of them is followed:
the viewer reads it, and a client asks for what an open page asks for, as often,
the curves, the times and the table of episodes. While the other one works,
viewer and client are stopped too.

The last line is one JSON object:

  alone_s, followed_s   wall time of the measured updates of either run
  speed_lost            1 - alone_s / followed_s; the aim is at most 0.03
  by_block              the same of each pair of blocks, to see the noise
  viewer_cpu_s          CPU seconds of the viewer meanwhile, of all cores
  answers               requests that it answered
  episodes              that it listed in the end: all that were learned from

The drawing of the page is not in it: a browser may run on another machine.
Compare within one run only, on a machine with nothing else to do.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
# As the page does (LOOK_MS of viewer/page/main.js).
LOOK_S = 2.0
# As many as the page draws before anybody chooses (MOST of runs.js).
CURVES = 6
WARM = 2


class Program:
  """A process group that can be stopped and go on.

  It is started by a shell in a session of its own, as what is typed into a
  terminal is: Linux may share out the time among sessions first.
  """

  def __init__(self, arguments: Sequence[str], log: pathlib.Path, **more):
    self._log = log
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    self._process = subprocess.Popen(
      [*shell, sys.executable, "-m", "steppo_jax", *arguments],
      cwd=ROOT, start_new_session=True, stderr=log.open("w"), **more,
    )  # fmt: skip

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.signal(signal.SIGKILL)
    self._process.wait()

  def signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, number)

  def check(self) -> None:
    """Raises RuntimeError if it has ended."""
    if self._process.poll() is not None:
      tail = self._log.read_text()[-1500:]
      raise RuntimeError(f"ended with {self._process.returncode}:\n{tail}")

  def line(self) -> str:
    """The next line of its output."""
    return self._process.stdout.readline().strip()

  def cpu_s(self) -> float:
    shell = self._process.pid
    children = pathlib.Path(f"/proc/{shell}/task/{shell}/children")
    (own,) = children.read_text().split()
    stat = pathlib.Path(f"/proc/{own}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Training(Program):
  """A run that is taken some updates further at a time."""

  def __init__(self, folder: pathlib.Path, options: Sequence[str]):
    self._metrics = folder / "metrics.jsonl"
    arguments = ["train", *options, f"run_dir={folder}"]
    log = folder.with_suffix(".log")
    super().__init__(arguments, log, stdout=log.with_suffix(".out").open("w"))

  @property
  def done(self) -> int:
    """Updates whose metrics are written."""
    with contextlib.suppress(FileNotFoundError):
      return self._metrics.read_bytes().count(b'"rollout/reward"')
    return 0

  def advance(self, updates: int) -> float:
    """Takes so many more updates; returns their wall time."""
    target = self.done + updates
    start = time.perf_counter()
    self.signal(signal.SIGCONT)
    while self.done < target:
      self.check()
      time.sleep(0.01)
    seconds = time.perf_counter() - start
    self.signal(signal.SIGSTOP)
    return seconds


class Client(threading.Thread):
  """Asks what an open page asks, while it may."""

  def __init__(self, url: str):
    super().__init__(daemon=True)
    self._url, self._state = url, None
    self._names: list[str] = []
    self.may = threading.Event()
    self.answers = self.episodes = 0

  def ask(self, what: str):
    with urllib.request.urlopen(f"{self._url}/api/{what}") as answer:
      self.answers += 1
      return json.loads(answer.read())

  def look(self) -> None:
    """What the page does every so often; more where something has changed."""
    state = self.ask("state")
    if state != self._state:
      self._state = state
      self._names = self._names or self.ask("names")[:CURVES]
      for name in self._names:
        self.ask(f"curves?runs=0&name={urllib.parse.quote(name)}")
      self.ask("times?run=0")
      self.ask("episodes?run=0")
    self.episodes = state[0]["episodes"]

  def run(self) -> None:
    while True:
      self.may.wait()
      # The server may be stopped in the middle of an answer: it comes later.
      self.look()
      time.sleep(LOOK_S)


def measure(options: Sequence[str], updates: int, block: int) -> dict:
  """Runs both, block by block."""
  alone_s, followed_s, by_block = 0.0, 0.0, []
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    alone = stack.enter_context(Training(folder / "alone", options))
    alone.advance(WARM)
    followed = stack.enter_context(Training(folder / "followed", options))
    followed.advance(WARM)
    viewer = stack.enter_context(Program(
      ["view", str(folder / "followed"), "--no-browser",
       "--cache", str(folder / "cache")],
      folder / "view.log", stdout=subprocess.PIPE, text=True,
    ))  # fmt: skip
    client = Client(viewer.line().split()[-1].rstrip("/"))
    client.look()
    client.start()
    viewer_cpu = viewer.cpu_s()
    for index in range(updates // block):
      seconds = {}
      for way in ("alone", "followed")[:: 1 if index % 2 else -1]:
        if way == "followed":
          viewer.signal(signal.SIGCONT)
          client.may.set()
          seconds[way] = followed.advance(block)
          client.may.clear()
        else:
          viewer.signal(signal.SIGSTOP)
          seconds[way] = alone.advance(block)
      alone_s += seconds["alone"]
      followed_s += seconds["followed"]
      by_block.append(round(1 - seconds["alone"] / seconds["followed"], 4))
      print(f"block {index + 1}: {seconds}", file=sys.stderr, flush=True)
    viewer.signal(signal.SIGCONT)
    viewer_cpu = viewer.cpu_s() - viewer_cpu
    client.look()
    return {
      "updates": len(by_block) * block,
      "alone_s": round(alone_s, 2),
      "followed_s": round(followed_s, 2),
      "speed_lost": round(1 - alone_s / followed_s, 4),
      "by_block": by_block,
      "viewer_cpu_s": round(viewer_cpu, 2),
      "answers": client.answers,
      "episodes": client.episodes,
    }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--quick", action="store_true", help="4 small updates")
  parser.add_argument("--updates", type=int, default=50)
  parser.add_argument("--block", type=int, default=5)
  args = parser.parse_args()
  if args.quick:
    args.updates, args.block = 4, 2
  if args.updates < args.block or args.block < 1:
    parser.error("--updates must be at least --block, and that at least 1")
  options = [
    "experiments/household_steppo.py", "num_devices=1",
    f"num_updates={WARM + args.updates + 2 * args.block}",
    "checkpoint_every=1", "keep_journals=1000", "evaluation.episodes=8",
    f"evaluation.every={10 * args.updates}",
  ]  # fmt: skip
  if args.quick:
    options += ["tasks_per_update=16"]
  print(json.dumps(measure(options, args.updates, args.block)))


if __name__ == "__main__":
  main()
