"""What a gateway costs: episodes a second through it, and time of a call.

  python benchmarks/gateway.py [--quick] [--rounds 3] [--model base_20m]

The warm start (0.4 million parameters), or a random model of a preset's sizes,
plays household games, once by the loop inside of a run and once as agents do:
by a process of its own (experiments/agents/household.py), which has nothing but
HTTP, with 64 sessions (quick: 8) at once. Model, engine, slots and prompts
are the same, and so are the episodes; both sides are measured in turn, round
after round, and a number is the median over rounds. What the agents' process
computes, environments and prompts, is on their side.

Then, on an idle server, calls of one token: by HTTP, and of the engine itself.
What lies between is the overhead of a call.

The last line is one JSON object. Compare within one run only.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from steppo_jax import types
from steppo_jax.prompts import base as prompt_base

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = ROOT / "experiments" / "household_steppo.py"
AGENTS = ROOT / "experiments" / "agents" / "household.py"
TOKENIZER = "household"


class Sides:
  """The loop and the gateway, with engines of one model."""

  def __init__(self, sessions: int, preset: str | None):
    import jax

    from steppo_jax.models import presets, transformer
    from steppo_jax.pretrained import policy
    from steppo_jax.sampler import options
    from steppo_jax.training import config, players

    made = config.load(str(EXPERIMENT))
    self.sessions = sessions
    self.config = dataclasses.replace(
      made,
      sampler=options.SamplerConfig(
        num_slots=sessions, prefill_lengths=made.sampler.prefill_lengths,
        refill=1, burst=8,
      ),
    )  # fmt: skip
    self.tokenizer = policy.load_tokenizer(TOKENIZER)
    if preset is None:
      self.model, self.params = players.load_model(self.config, self.tokenizer)
    else:
      self.model = presets.get(preset, self.tokenizer.num_ids)
      self.params = jax.jit(
        lambda key: transformer.init(self.model, key)
      )(jax.random.key(0))  # fmt: skip
    self.tasks = players.make_tasks(made.env)

  def engine(self):
    from steppo_jax.sampler import engine

    rollout = self.config.rollout
    made = engine.SlotEngine(
      self.model, self.config.sampler, context=rollout.max_tokens,
      max_new_tokens=rollout.max_new_tokens,
      end_of_turn_id=self.tokenizer.end_of_turn_id, seed=0,
    )  # fmt: skip
    made.set_params(self.params, 0)
    made.warm_up()
    return made

  def episodes(self, count: int, round_: int):
    from steppo_jax.rollout import loop

    tasks = self.tasks.sample(count, seed=0, update=round_)
    return [
      loop.Episode(f"{round_}-{n}", task, 0, (0, round_, n))
      for n, task in enumerate(tasks)
    ]

  def by_loop(self, engine, episodes) -> float:
    """Episodes a second of the loop inside of a run."""
    from steppo_jax.envs.household import env as household
    from steppo_jax.rollout import loop

    begun = time.perf_counter()
    done = loop.run(
      engine, lambda: household.HouseholdEnv(invalid_penalty=0.1), episodes,
      prompt_base.CompactPrompt(self.tokenizer), self.config.rollout,
    )  # fmt: skip
    assert all(one.error is None for one in done)
    return len(done) / (time.perf_counter() - begun)

  @contextlib.contextmanager
  def gateway(self, engine):
    """A server of the engine, and its pool."""
    from steppo_jax.rollout import pool as pool_lib
    from steppo_jax.serving import answers, app, background, scheduler
    from steppo_jax.serving import session as session_lib
    from steppo_jax.serving import sessions as sessions_lib

    rollout = self.config.rollout
    limits = {"max_new_tokens": rollout.max_new_tokens}
    gate = scheduler.Scheduler(engine, max_waiting=1 << 16)
    policy = answers.Policy(
      "policy", self.tokenizer, gate, context=rollout.max_tokens, **limits
    )
    with (
      tempfile.TemporaryDirectory() as folder,
      pool_lib.Pool(pathlib.Path(folder) / "pool.sqlite") as pool,
    ):
      recorded = sessions_lib.Sessions(
        policy, pool,
        limits=session_lib.Limits(
          temperature=rollout.temperature, turns=rollout.max_steps, **limits
        ),
      )  # fmt: skip
      server = background.Background(
        app.make(policy, sessions=recorded),
        background.listen("127.0.0.1", 0, key=None, option=""),
      )
      try:
        yield server.url, pool
      finally:
        server.close()
        gate.close()

  def by_gateway(self, url, pool, episodes) -> float:
    """Episodes a second of agents that ask the gateway."""
    for one in episodes:
      pool.issue(one.uid, one.task, [(one.uid, one.key, one.seed)])
    child = subprocess.Popen(
      [sys.executable, str(AGENTS), url, "--sessions", str(self.sessions),
       "--once", "--wait"],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
      assert child.stdout.readline() == "ready\n"
      begun = time.perf_counter()
      child.stdin.write("go\n")
      child.stdin.flush()
      assert child.stdout.readline() == f"played {len(episodes)} episodes\n"
      seconds = time.perf_counter() - begun
    return len(episodes) / seconds

  def calls(self, url, engine, count: int) -> dict[str, float]:
    """Milliseconds of calls of one token: by HTTP, and of the engine."""
    spec = importlib.util.spec_from_file_location("household_agents", AGENTS)
    agents = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agents)
    client, ids = agents.Client(url), np.arange(3, 40, dtype=np.int32)
    by = {"http": [], "engine": []}
    for n in range(count):
      begun = time.perf_counter()
      client.post("/inference/v1/generate", {
        "token_ids": ids.tolist(), "sampling_params": {"max_tokens": 1},
      }, "any")  # fmt: skip
      by["http"].append(time.perf_counter() - begun)
      begun = time.perf_counter()
      # The server, too, has the prompt in its cache from the second call on.
      engine.generate([types.Request("one", ids, (n,), 1, 1.0)])
      by["engine"].append(time.perf_counter() - begun)
    return {
      f"{name}_ms_{mark}": 1e3 * float(np.quantile(many, share))
      for name, many in by.items()
      for mark, share in (("p50", 0.5), ("p99", 0.99))
    }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true", help="8 sessions")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--model", help="a preset of random weights")
  args = parser.parse_args()
  sessions = 8 if args.quick else 64
  sides, found = Sides(sessions, args.model), {"loop": [], "gateway": []}
  inside, served = sides.engine(), sides.engine()
  with sides.gateway(served) as (url, pool):
    for round_ in range(args.rounds + 1):  # The first one warms up.
      count = (1 if not round_ else 3) * sessions
      episodes = sides.episodes(count, round_)
      rates = {
        "loop": sides.by_loop(inside, episodes),
        "gateway": sides.by_gateway(url, pool, episodes),
      }
      print(f"round {round_}: {rates}", flush=True)
      for name, rate in rates.items() if round_ else ():
        found[name].append(rate)
    calls = sides.calls(url, inside, 100 if args.quick else 500)
  ratios = [b / a for a, b in zip(*found.values(), strict=True)]
  result = {f"{k}_episodes_per_s": statistics.median(x)
            for k, x in found.items()}  # fmt: skip
  result |= {"gateway_over_loop": statistics.median(ratios)} | calls
  result["overhead_ms_p50"] = calls["http_ms_p50"] - calls["engine_ms_p50"]
  result["overhead_ms_p99"] = calls["http_ms_p99"] - calls["engine_ms_p99"]
  print(json.dumps({
    "sessions": sessions, "model": args.model or "warm start", **result,
  }))  # fmt: skip


if __name__ == "__main__":
  main()
