"""Two environments as servers: `python openenv_server.py NAME PLACES`.

Run by an interpreter that has a package of OpenEnv. Prints its port, then its
own memory in MB whenever a line comes on standard input.
"""

import resource
import socket
import sys
import threading

import uvicorn
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Say(Action):
  message: str


class Heard(Observation):
  text: str = ""


class Counting(Environment):
  """Counts what is said; "win" ends it, "raise" raises."""

  SUPPORTS_CONCURRENT_SESSIONS = True

  def __init__(self):
    super().__init__()
    self._state = State(episode_id=None, step_count=0)

  def reset(self, seed=None, episode_id=None, goal=None, **_):
    self._state = State(episode_id=episode_id, step_count=0)
    return Heard(text=f"seed {seed} goal {goal}", done=False, reward=None)

  def step(self, action, timeout_s=None, **_):
    self._state.step_count += 1
    if action.message == "raise":
      raise RuntimeError("as asked")
    done = action.message == "win"
    text = f"{self._state.step_count}: {action.message}"
    return Heard(text=text, done=done, reward=float(done))

  @property
  def state(self):
    return self._state


class Move(Action):
  column: int


class Board(Observation):
  cells: tuple[int, ...] = ()
  legal: tuple[int, ...] = ()


class Columns(Counting):
  """Columns are chosen by number, and seen as lists of numbers."""

  def reset(self, seed=None, **_):
    self._cells = [0, 0, 0]
    return Board(cells=self._cells, legal=[0, 1, 2], done=False)

  def step(self, action, **_):
    self._cells = [n + (i == action.column) for i, n in enumerate(self._cells)]
    done = max(self._cells) > 1
    # A reward may be absent.
    return Board(cells=self._cells, legal=[0, 1, 2], done=done, reward=None)


def memory():
  for _ in sys.stdin:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(used / 1024, flush=True)


if __name__ == "__main__":
  env, action, seen = {
    "counting": (Counting, Say, Heard),
    "columns": (Columns, Move, Board),
  }[sys.argv[1]]
  places = int(sys.argv[2])
  app = create_fastapi_app(env, action, seen, max_concurrent_envs=places)
  listening = socket.socket()
  listening.bind(("127.0.0.1", 0))
  print(listening.getsockname()[1], flush=True)
  threading.Thread(target=memory, daemon=True).start()
  uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])
