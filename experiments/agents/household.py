"""Agents that come by themselves and play household games, by token ids.

  python -m steppo_jax train experiments/household_service.py &
  python experiments/agents/household.py

Each of so many threads takes a task (`POST /sessions`), asks for tokens
(`/inference/v1/generate`), sends what each step was worth, and finishes. They
wait for the gateway, look for tasks while none waits, and end with the gateway.
A gateway with a key is sent that of the variable STEPPO_API_KEY.

The policies of these games are too small for chats, so that prompts are made
here, as the run's layout "compact" makes them, and a refused command costs what
`env.invalid_penalty` says; agents of larger policies had better be those of
docs/agents.md.
"""

import argparse
import http.client
import itertools
import json
import os
import socket
import sys
import threading
import time
import urllib.parse
import uuid

import numpy as np

from steppo_jax import types
from steppo_jax.envs.household import env as household
from steppo_jax.prompts import base as prompt_base
from steppo_jax.tokenizer import loading

TOKENIZER = "household"
# That of experiments/household_service.py, on this machine.
HOST, PORT, PENALTY = "127.0.0.1", 8137, 0.1
# Seconds: for an answer, between two looks for a task (growing to the second),
# and for a gateway that is not there yet.
ANSWER_S, LOOK_S, START_S = 600.0, (0.02, 0.5), 600.0
# Codes of faults that say that an episode is at a limit.
LIMITS = ("max_steps_exceeded", "context_length_exceeded")


class Fault(RuntimeError):
  """The gateway's answer is none of those that are expected."""


class Client:
  """A connection of one thread."""

  def __init__(self, url: str):
    parts = urllib.parse.urlsplit(url)
    self._connection = http.client.HTTPConnection(
      parts.hostname, parts.port, timeout=ANSWER_S
    )

  def post(self, path: str, body: dict, key: str, codes: tuple = ()):
    """The answer, or the code of a fault that is one of these.

    A gateway closes connections that are not used for some seconds. Then the
    request is sent once more, which the gateway takes for the same one.

    Raises:
      Fault: it is another one.
      OSError, http.client.HTTPException: the gateway is gone.
    """
    headers = {"Authorization": f"Bearer {key}"}
    for again in (False, True):
      try:
        self._connection.request("POST", path, json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        break
      except (OSError, http.client.HTTPException):
        self._connection.close()
        if again:
          raise
    if answer.status == 200:
      return json.loads(text)
    for code in codes:
      if f'"{code}"'.encode() in text:
        return code
    raise Fault(f"{path} is answered {answer.status}: {text[:500]!r}")


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


def play(client, prompts, session: dict, penalty: float) -> None:
  """One episode: the task of a session.

  Raises:
    Fault: the gateway does not answer as it should.
  """
  path, key = urllib.parse.urlsplit(session["url"]).path, session["api_key"]
  env = household.HouseholdEnv(invalid_penalty=penalty)
  seen = env.reset(types.task_from_json(session["task"]), session["seed"])
  turns, end = [types.Turn(seen.observation)], {"status": "ended"}
  ids = prompts.first(turns[0])
  for step in itertools.count():
    found = client.post(
      "/inference/v1/generate", {"token_ids": ids.tolist()}, key, LIMITS
    )
    if found in LIMITS:  # The gateway counts the episode as cut.
      end["success"] = False
      break
    response = np.array(found["choices"][0]["token_ids"], np.int32)
    seen = env.step(prompts.action(response))
    reward = {
      "step": step, "reward": seen.reward,
      "invalid": bool(seen.info.get("invalid", False)),
    }  # fmt: skip
    client.post(f"{path}/rewards", reward, key)
    if seen.terminated:
      end = {"status": "terminated", "success": bool(seen.info["won"])}
      break
    turns[-1] = turns[-1]._replace(response_ids=response)
    turns.append(types.Turn(seen.observation))
    ids = prompts.extend(ids, turns)
  client.post(f"{path}/finish", end, key)


class Agents:
  """So many threads that play what waits.

  Attributes:
    played: Names of the episodes that were.
    failed: What ended threads that should go on.
  """

  def __init__(self, url: str, sessions: int, once: bool, penalty: float):
    self._url, self._once, self._penalty = url, once, penalty
    self._key = os.environ.get("STEPPO_API_KEY", "any")
    self._prompts = prompt_base.CompactPrompt(loading.load(TOKENIZER))
    self._looking = threading.Lock()
    self._over = False
    self._threads = [
      threading.Thread(target=self._work, daemon=True) for _ in range(sessions)
    ]
    self.played: list[str] = []
    self.failed: list[Exception] = []

  def run(self) -> None:
    """Plays until the gateway is gone, or no task waits."""
    for one in self._threads:
      one.start()
    for one in self._threads:
      one.join()

  def _work(self) -> None:
    client = Client(self._url)
    try:
      while (session := self._task(client)) is not None:
        play(client, self._prompts, session, self._penalty)
        self.played.append(session["id"])
    except Exception as error:
      self.failed.append(error)
      self._over = True

  def _task(self, client: Client) -> dict | None:
    """What to play; None when that is over. One thread looks, for all."""
    wait_s, most_s = LOOK_S
    with self._looking:
      while not self._over:
        try:
          asked = {"request_id": str(uuid.uuid4())}
          found = client.post("/sessions", asked, self._key, ("no_task",))
        except (OSError, http.client.HTTPException):
          if self._once:
            raise
          self._over = True  # The gateway is gone.
          break
        if found != "no_task":
          return found
        if self._once:
          break
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, most_s)
    return None


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "url", nargs="?", default=f"http://{HOST}:{PORT}",
    help="of the gateway (%(default)s)",
  )  # fmt: skip
  parser.add_argument("--sessions", type=int, default=64, help="at once (64)")
  parser.add_argument(
    "--invalid-penalty", type=float, default=PENALTY,
    help="reward that a refused command costs (%(default)s)",
  )  # fmt: skip
  parser.add_argument(
    "--once", action="store_true", help="end when no task waits"
  )
  parser.add_argument(
    "--wait", action="store_true", help="begin with a line on standard input"
  )
  args = parser.parse_args()
  agents = Agents(args.url, args.sessions, args.once, args.invalid_penalty)
  if args.wait:
    print("ready", flush=True)
    sys.stdin.readline()
  awaited(args.url)
  agents.run()
  if agents.failed:
    raise agents.failed[0]
  print(f"played {len(agents.played)} episodes", flush=True)


if __name__ == "__main__":
  main()
