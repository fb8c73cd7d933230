"""Speed of credit assignment: ours, a plain loop, and reading the inputs once.

  python benchmarks/estimators.py [--quick]

Every method goes from the arrays a learner holds to one advantage a token,
[steps, 512], on one row per step. Three times are taken in one run, as medians:

  ours   the estimator and the broadcast to tokens, jitted
  loop   the same numbers by a plain loop in PyTorch, the way public code is
         written: dictionaries over rows for groups; token by token for token
         GAE, all trajectories at once. Without PyTorch: the same loop in NumPy
  read   summing the token arrays that the method reads: the bandwidth bound

Both answers are compared before anything is timed. Then step GAE alone, on
tables of steps of growing length. The last line is one JSON object. Machines
are shared and noisy: compare within one run only.
"""

import argparse
import importlib
import json
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax.algorithms import estimators
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.batch import StepTable, TokenBatch
from steppo_jax.ops import returns, segments
from steppo_jax.storage import folder as run_folder

TOKENS, PROMPT = 512, 8
STEPS_OF_EPISODE, EPISODES_OF_GROUP, ANCHORS = 8, 8, 4
# Aims of the project: times faster than the loop at 1,024 steps.
AIMS = {"token_gae": 41.0, "grpo": 30.0, "gigpo": 75.0}
# Rows of the table whose constants are used.
ROWS = {"step_gae": "steppo", "token_gae": "ppo", "grpo": "grpo",
        "gigpo": "gigpo"}  # fmt: skip
DISCOUNT, LAMBDA = 0.99, 0.95


class Data(NamedTuple):
  """One row per step; step k lies in row k - 1."""

  batch: TokenBatch
  table: StepTable
  value: np.ndarray


def number_pairs(a, b):
  """[N] int32, equal exactly where both are."""
  pairs = np.stack([a, b], axis=1)
  return np.unique(pairs, axis=0, return_inverse=True)[1].astype(np.int32)


def make(steps, seed=0):
  """Episodes of 8 steps in groups of 8, responses of 64 to 504 tokens."""
  rng = np.random.default_rng(seed)
  number = np.arange(steps + 1)
  column = np.arange(TOKENS)
  length = rng.integers(64, TOKENS - PROMPT + 1, size=(steps, 1))
  action = (column >= PROMPT) & (column < PROMPT + length)
  ids = np.where(action, number[1:, None], 0).astype(np.int32)
  live = number > 0
  episode = np.maximum(number - 1, 0) // STEPS_OF_EPISODE
  zeros = np.zeros(steps + 1, np.int32)
  shape = (steps, TOKENS)
  return Data(
    batch=TokenBatch(
      tokens=np.zeros(shape, np.int32),
      positions=np.zeros(shape, np.int32),
      parent=np.tile(np.maximum(column - 1, 0), (steps, 1)).astype(np.int32),
      subtree_end=np.zeros(shape, np.int32),
      step_ids=ids,
      behaviour_logp=np.zeros(shape, np.float32),
    ),
    table=StepTable(
      live=live,
      reward=np.where(live, rng.normal(size=steps + 1), 0).astype(np.float32),
      num_tokens=np.concatenate([[0], action.sum(1)]).astype(np.int32),
      last=number % STEPS_OF_EPISODE == 0,
      truncated=np.zeros(steps + 1, bool),
      boundary=np.where(
        live, np.maximum(number - 1, 0) * TOKENS + PROMPT - 1, 0
      ).astype(np.int32),
      bootstrap_at=zeros,
      trajectory=episode.astype(np.int32),
      group=(episode // EPISODES_OF_GROUP).astype(np.int32),
      anchor=live
      * number_pairs(
        episode // EPISODES_OF_GROUP, rng.integers(0, ANCHORS, size=steps + 1)
      ),
    ),
    value=rng.normal(size=shape).astype(np.float32),
  )


def ours(name):
  """The estimator with its row's constants, broadcast to tokens."""
  estimator = getattr(estimators, name)
  options = dict(algorithms_table.get(ROWS[name]).options)

  def function(batch, table, value):
    credit = estimator(
      batch,
      table,
      value,
      estimators.Extras(),
      discount=DISCOUNT,
      lambda_=LAMBDA,
      **options,
    ).advantage
    if credit.ndim == 2:
      return credit
    return segments.to_tokens(credit, batch.step_ids)

  return jax.jit(function)


def token_arrays(name, data):
  """The [steps, 512] arrays that a method has to read."""
  if name == "token_gae":
    return data.batch.step_ids, data.batch.parent, data.value
  return (data.batch.step_ids,)


class Loops:
  """The four methods as plain loops over an array library, float32.

  `xp` is torch or numpy: only what both spell alike is used.
  """

  def __init__(self, xp, data):
    put = xp.from_numpy if hasattr(xp, "from_numpy") else np.asarray
    self.xp = xp
    self.mask = put(data.batch.step_ids > 0)
    self.value = put(data.value)
    self.reward = put(data.table.reward[1:])
    self.last = data.table.last[1:].tolist()
    self.boundary = data.table.boundary[1:].tolist()
    self.episode = data.table.trajectory[1:].tolist()
    self.group = data.table.group[1:].tolist()
    self.anchor = data.table.anchor[1:].tolist()

  def zeros(self, *shape):
    return self.xp.zeros(shape, dtype=self.xp.float32)

  def spread(self, x):
    return (((x - x.mean()) ** 2).sum() / max(len(x) - 1, 1)) ** 0.5

  def to_tokens(self, score):
    return score[:, None] * self.mask

  def whitened(self, x):
    return (x - x.mean()) / (self.spread(x) + 1e-8)

  def step_gae(self):
    """Step by step, from the last to the first."""
    value = self.value.reshape(-1)
    advantage = self.zeros(len(self.last))
    after, gain = 0.0, 0.0
    for k in reversed(range(len(self.last))):
      if self.last[k]:
        after, gain = 0.0, 0.0
      now = value[self.boundary[k]]
      delta = self.reward[k] + DISCOUNT * after - now
      gain = delta + DISCOUNT * LAMBDA * gain
      after = now
      advantage[k] = gain
    return self.to_tokens(self.whitened(advantage))

  def token_gae(self):
    """Token by token, all episodes at once, each laid out in one row."""
    pieces, at = [], [0] * (1 + max(self.episode))
    for row, episode in enumerate(self.episode):
      size = int(self.mask[row].sum())
      pieces.append((episode, at[episode], size, self.boundary[row] % TOKENS))
      at[episode] += size
    longest = max(at)
    value = self.zeros(len(at), longest + 1)
    reward, live = self.zeros(len(at), longest), self.zeros(len(at), longest)
    for row, (episode, start, size, first) in enumerate(pieces):
      end = start + size
      value[episode, start:end] = self.value[row, first : first + size]
      reward[episode, end - 1] = self.reward[row]
      live[episode, start:end] = 1.0
    advantage = self.zeros(len(at), longest)
    gain = self.zeros(len(at))
    for i in reversed(range(longest)):
      delta = reward[:, i] + DISCOUNT * value[:, i + 1] - value[:, i]
      gain = (delta + DISCOUNT * LAMBDA * gain) * live[:, i]
      advantage[:, i] = gain
    result = self.zeros(*self.mask.shape)
    for row, (episode, start, size, first) in enumerate(pieces):
      own = advantage[episode, start : start + size]
      result[row, first + 1 : first + 1 + size] = own
    result[self.mask] = self.whitened(result[self.mask])
    return result

  def zscores(self, score, keys):
    """Row by row: members of each key, then their z-scores."""
    members = {}
    for row, key in enumerate(keys):
      members.setdefault(key, []).append(row)
    result = self.zeros(len(keys))
    for rows in members.values():
      if len(rows) == 1:
        continue
      own = score[rows]
      mean, std = own.mean(), self.spread(own)
      for row in rows:
        result[row] = (score[row] - mean) / (std + 1e-6)
    return result

  def episodes(self):
    total = self.zeros(1 + max(self.episode))
    group = [0] * len(total)
    for row, episode in enumerate(self.episode):
      total[episode] += self.reward[row]
      group[episode] = self.group[row]
    return self.zscores(total, group)[self.episode]

  def grpo(self):
    return self.to_tokens(self.episodes())

  def gigpo(self):
    gains, gain = self.zeros(len(self.last)), 0.0
    for k in reversed(range(len(self.last))):
      gain = self.reward[k] + DISCOUNT * (0.0 if self.last[k] else gain)
      gains[k] = gain
    states = list(zip(self.group, self.anchor, strict=True))
    return self.to_tokens(self.episodes() + self.zscores(gains, states))


def median_s(function, repeats):
  """Median seconds of a call, after one that is not counted."""
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return statistics.median(times[1:])


def compare(name, data, xp, repeats):
  """Times of one method on one batch, and how far the two answers differ."""
  loop = getattr(Loops(xp, data), name)
  run, arrays = ours(name), jax.device_put(data)
  difference = np.abs(np.asarray(run(*arrays)) - np.asarray(loop())).max()
  if difference > 1e-3:
    raise RuntimeError(f"{name}: ours and the loop differ by {difference:.2g}")
  read = jax.jit(lambda xs: [x.sum() for x in xs])
  inputs = token_arrays(name, arrays)
  result = {
    "ours_s": median_s(lambda: run(*arrays), repeats),
    "loop_s": median_s(loop, max(repeats // 4, 1)),
    "read_s": median_s(lambda: read(inputs), repeats),
    "difference": float(difference),
  }
  result["loop_over_ours"] = result["loop_s"] / result["ours_s"]
  result["ours_over_read"] = result["ours_s"] / result["read_s"]
  size = sum(x.nbytes for x in inputs)
  result["read_gb_per_s"] = size / result["read_s"] / 1e9
  return result


def table_s(steps, repeats):
  """Median seconds of step GAE on tables [steps], nothing per token."""
  rng, number = np.random.default_rng(0), np.arange(steps)
  arrays = [
    jnp.asarray(x)
    for x in (
      rng.normal(size=steps).astype(np.float32),
      rng.normal(size=steps).astype(np.float32),
      number % STEPS_OF_EPISODE == STEPS_OF_EPISODE - 1,
      np.zeros(steps, np.float32),
    )
  ]
  run = jax.jit(
    lambda *x: returns.step_gae(*x, discount=DISCOUNT, lambda_=LAMBDA)
  )
  return median_s(lambda: run(*arrays), repeats)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="fewer repeats")
  repeats = 8 if parser.parse_args().quick else 40
  try:
    xp = importlib.import_module("torch")
    baseline = f"PyTorch {xp.__version__}, {xp.get_num_threads()} threads"
  except ModuleNotFoundError:
    xp, baseline = np, f"NumPy {np.__version__}"
    print("PyTorch is not installed: the loop below is the same in NumPy")
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "loop": baseline,
  }
  print("\n".join(f"{name:10} {value}" for name, value in result.items()))
  heads = ("ours ms", "loop ms", "read ms", "loop/ours", "ours/read")
  heads = " ".join(f"{head:>9}" for head in heads)
  print(f"\n{'method':10} {'steps':>6} {heads}    aim (loop/ours)")
  for steps in (1024, 8192):
    data = make(steps)
    for name in ROWS:
      found = compare(name, data, xp, repeats)
      result[f"{name}_{steps}"] = found
      cells = [found[key] * 1e3 for key in ("ours_s", "loop_s", "read_s")]
      cells += [found["loop_over_ours"], found["ours_over_read"]]
      aim = f"{AIMS[name]:6.0f}" if name in AIMS and steps == 1024 else "     -"
      print(f"{name:10} {steps:6}", *(f"{x:9.2f}" for x in cells), aim)
  print("\nstep GAE on tables (aim: under 1 ms at 8,192 steps, then linear)")
  first = None
  for steps in (8192, 16384, 32768, 65536):
    seconds = table_s(steps, repeats)
    first = first or seconds
    result[f"step_gae_table_{steps}_s"] = seconds
    print(
      f"{steps:10} {seconds * 1e3:9.3f} ms {seconds / first:6.2f} times the"
      f" first for {steps // 8192} times the steps"
    )
  print(json.dumps(result))


if __name__ == "__main__":
  main()
