"""Agents that come by themselves and play household games, by token ids.

  python -m steppo_jax train experiments/household_service.py &
  python experiments/agents/household.py http://HOST:8137

Each of so many threads takes a task (`POST /sessions`), asks for tokens
(`/inference/v1/generate`), sends what each step was worth, and finishes; while
no task waits it looks again. They know of the run nothing but the address of
its gateway, for which they wait and with which they end. The policies of these
games are too small for chats, so that prompts are made here; agents of larger
ones had better be those of docs/agents.md.
"""

import argparse
import http.client
import itertools
import json
import socket
import sys
import threading
import time
import urllib.parse

import numpy as np

from steppo_jax import types
from steppo_jax.envs.household import env as household
from steppo_jax.prompts import base as prompt_base
from steppo_jax.tokenizer import loading

TOKENIZER = "household"
# Seconds: for an answer, between two looks for a task, and for a gateway that
# is not there yet.
ANSWER_S, LOOK_S, START_S = 600.0, 0.05, 600.0


class Client:
  """A connection of one thread."""

  def __init__(self, url: str):
    parts = urllib.parse.urlsplit(url)
    self._connection = http.client.HTTPConnection(
      parts.hostname, parts.port, timeout=ANSWER_S
    )

  def post(self, path: str, body: dict, key: str = "any"):
    """Status and answer."""
    headers = {"Authorization": f"Bearer {key}"}
    self._connection.request("POST", path, json.dumps(body), headers)
    answer = self._connection.getresponse()
    return answer.status, json.loads(answer.read())


def awaited(url: str) -> None:
  """Waits until a gateway is there.

  Raises:
    OSError: it does not come.
  """
  parts, begun = urllib.parse.urlsplit(url), time.monotonic()
  while True:
    try:
      socket.create_connection((parts.hostname, parts.port), 5).close()
      return
    except OSError:
      if time.monotonic() > begun + START_S:
        raise
      time.sleep(0.5)


def play(client: Client, prompts: prompt_base.Prompt, session: dict) -> None:
  """One episode: the task of a session.

  Raises:
    RuntimeError: the gateway answers with a fault.
  """
  path, key = urllib.parse.urlsplit(session["url"]).path, session["api_key"]

  def told(path, **body):
    status, found = client.post(path, body, key)
    if status != 200:
      raise RuntimeError(found)

  env = household.HouseholdEnv(invalid_penalty=0.1)
  seen = env.reset(types.task_from_json(session["task"]), session["seed"])
  turns, end = [types.Turn(seen.observation)], {"status": "ended"}
  ids = prompts.first(turns[0])
  for step in itertools.count():
    status, found = client.post(
      "/inference/v1/generate", {"token_ids": ids.tolist()}, key
    )
    if status == 400:  # No step is left, or no room for one: it is cut here.
      end["success"] = False
      break
    if status != 200:
      raise RuntimeError(found)
    response = np.array(found["choices"][0]["token_ids"], np.int32)
    seen = env.step(prompts.action(response))
    told(
      f"{path}/rewards", step=step, reward=seen.reward,
      invalid=bool(seen.info.get("invalid", False)),
    )  # fmt: skip
    if seen.terminated:
      end = {"status": "terminated", "success": bool(seen.info["won"])}
      break
    turns[-1] = turns[-1]._replace(response_ids=response)
    turns.append(types.Turn(seen.observation))
    ids = prompts.extend(ids, turns)
  told(f"{path}/finish", **end)


class Agents:
  """So many threads that play what waits."""

  def __init__(self, url: str, sessions: int, once: bool):
    self._url, self._once = url, once
    self._prompts = prompt_base.CompactPrompt(loading.load(TOKENIZER))
    self._threads = [
      threading.Thread(target=self._work) for _ in range(sessions)
    ]
    self.failed: list[Exception] = []
    self.count = 0

  def run(self) -> None:
    """Plays until the gateway is gone, or no task waits."""
    for one in self._threads:
      one.start()
    for one in self._threads:
      one.join()

  def _work(self) -> None:
    client = Client(self._url)
    try:
      while not self.failed:
        status, session = client.post("/sessions", {})
        if status == 200:
          play(client, self._prompts, session)
          self.count += 1
        elif status != 503:
          raise RuntimeError(session)
        elif self._once:
          return
        else:  # No task waits.
          time.sleep(LOOK_S)
    except (OSError, http.client.HTTPException):
      if self._once:
        raise
    except Exception as error:
      self.failed.append(error)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("url", help="of the gateway")
  parser.add_argument("--sessions", type=int, default=64, help="at once (64)")
  parser.add_argument(
    "--once", action="store_true", help="end when no task waits"
  )
  parser.add_argument(
    "--wait", action="store_true", help="begin with a line on standard input"
  )
  args = parser.parse_args()
  agents = Agents(args.url, args.sessions, args.once)
  if args.wait:
    print("ready", flush=True)
    sys.stdin.readline()
  awaited(args.url)
  agents.run()
  if agents.failed:
    raise agents.failed[0]
  print(f"played {agents.count} episodes")


if __name__ == "__main__":
  main()
