"""A gateway that is killed while agents speak to it, and started anew."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import agent_calls
import agent_runs
import httpx
import openai
import pytest

from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries

pytestmark = pytest.mark.slow


def agent(url, number, acked, stop):
  """Plays sessions; notes those whose end was acknowledged."""
  turn = 0
  while not stop.is_set():
    turn += 1
    try:
      made = agent_calls.make(url, task={"uid": f"{number}-{turn}"})
      with agent_calls.client_of(made) as client:
        said = agent_calls.ask(client, [agent_calls.user("go")], max_tokens=4)
        text = said.choices[0].message.content
        agent_calls.ask(client, [
          agent_calls.user("go"), {"role": "assistant", "content": text},
          agent_calls.user("on"),
        ], max_tokens=4)  # fmt: skip
      end = {"status": "terminated", "reward": float(turn)}
      for _ in range(50):
        try:
          done = agent_calls.post(made, "finish", **end)
        except httpx.HTTPError:
          time.sleep(0.3)  # Whether it was taken is not known: once more.
          continue
        if done.status_code == 200:
          acked.append((made["id"], done.json()["reward"]))
        break
    except (httpx.HTTPError, openai.OpenAIError, AssertionError):
      time.sleep(0.3)


def test_no_end_that_was_acknowledged_is_lost_and_none_is_there_twice(
  tmp_path,
):
  folder = agent_runs.model(tmp_path / "model")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  url = "http://{}:{}".format("localhost", port)
  pool = tmp_path / "pool"
  command = [
    sys.executable, "-m", "steppo_jax", "serve", "policy", "--weights",
    str(folder), "--context", "256", "--port", str(port), "--pool", str(pool),
    "--no-warm-up",
  ]  # fmt: skip
  acked, stop, rng = [], threading.Event(), random.Random(0)
  agents = [
    threading.Thread(target=agent, args=(url, n, acked, stop)) for n in range(4)
  ]
  for thread in agents:
    thread.start()
  try:
    for _ in range(3):
      before = len(acked)
      with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ
      ) as server:
        assert server.stdout.readline().startswith(b"listening")
        deadline = time.monotonic() + 120
        while len(acked) < before + 4:
          assert time.monotonic() < deadline
          time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
        server.send_signal(signal.SIGKILL)
  finally:
    stop.set()
    for thread in agents:
      thread.join()
  assert len(acked) == len({uid for uid, _ in acked}) >= 12
  with pool_lib.Pool(pool) as store:
    counts = pool_entries.counts(store)
    found = store.lease("learner", 60, groups=10**6)
    issued = len(pool_entries.entries(store))
  # What was under way when a gateway was killed waits for its lease to end.
  between = counts["issued"] + counts["running"]
  assert issued == counts["ready"] + counts["failed"] + between
  rewards = {one.uid: one.total_reward for one in found}
  assert len(found) == len(rewards) == counts["ready"]
  assert {uid: rewards.get(uid) for uid, _ in acked} == dict(acked)
  assert all(len(one.steps) == 2 for one in found)
