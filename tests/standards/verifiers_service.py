"""Rollouts that verifiers starts by itself: `python verifiers_service.py URL`.

Each asks the gateway at the address under its own name, and is finished there
with the reward that verifiers gave it. Ends when it is killed.
"""

import asyncio
import sys

import httpx
from verifiers import v1 as vf
from verifiers.v1.utils import loaders

url = sys.argv[1]
config = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
env = loaders.load_environment(
  loaders.resolve_env_config({"taskset": {"id": "vf_words"}, "agent": config})
)
context = vf.ModelContext(
  "policy", vf.EvalClientConfig(base_url=f"{url}/v1", api_key_var="NO_KEY")
)


async def play(task):
  episode = await env.run_episode(task, context)
  (trace,) = episode.traces
  if not trace.nodes or not any(node.sampled for node in trace.nodes):
    await asyncio.sleep(0.2)  # No task waited, and no session was begun.
    return
  form = {"status": "ended", "reward": trace.reward}
  if not trace.ok:
    form = {"status": "error", "cause": trace.errors[-1].type}
  async with httpx.AsyncClient() as client:
    told = await client.post(f"{url}/sessions/{trace.id}/finish", json=form)
    told.raise_for_status()


async def main():
  tasks, count = list(env.taskset), 0
  async with env.serving():
    while True:
      await asyncio.gather(*(play(tasks[(count + k) % 30]) for k in range(2)))
      count += 2


asyncio.run(main())
