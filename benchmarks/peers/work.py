"""The work that every side of `make bench-peers` does, and how it is timed.

Imported by each side in its own environment: nothing but NumPy is needed. The
folder of a run holds `spec.json` (sizes), `model/` (weights with the names and
the configuration of transformers' Llama), `work.npz` (tokens) and one JSON file
a side.
"""

import json
import pathlib
import statistics
import sys
import time
import traceback

import numpy as np

# Padding where a side needs it. Observations hold no such token.
PAD = 0
# Calls before those that count.
WARM_UP = 2


class Work:
  """What is to be done, as prepared by `prepare.py`.

  Attributes:
    spec: The sizes; see `run.spec`.
    folder: Where it lies.
    tokens: [N, L] int32 whole conversations of the update.
    sampled: [L] bool, True where a conversation's token was sampled.
    behaviour_logp: [N, A] float32 of the sampled tokens.
    reference_logp: [N, A] float32, the same under the given weights.
    advantage: [N] float32, one number a conversation.
    reward: [N] float32, given at its last step.
  """

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.spec = json.loads((self.folder / "spec.json").read_text())
    self.model_folder = self.folder / "model"
    with np.load(self.folder / "work.npz", allow_pickle=False) as arrays:
      self.tokens = arrays["tokens"]
      self.sampled = arrays["sampled"]
      self.behaviour_logp = arrays["behaviour_logp"]
      self.reference_logp = arrays["reference_logp"]
      self.advantage = arrays["advantage"]
      self.reward = arrays["reward"]


def observations(vocab, turns, episodes, length, seed=0):
  """[turns, episodes, length] int32 tokens that are shown, never `PAD`."""
  rng = np.random.default_rng(seed)
  return rng.integers(1, vocab, (turns, episodes, length)).astype(np.int32)


def sampled_mask(turns, observe, sample):
  """[turns * (observe + sample)] bool, True where a turn is sampled."""
  return np.tile(np.arange(observe + sample) >= observe, turns)


def converse(shown, answer):
  """Plays all episodes side by side, turn by turn.

  Args:
    shown: [turns, episodes, O] int32 tokens that each turn adds.
    answer: Function of the whole prompts [episodes, P] and the turn to sampled
      tokens [episodes, S].

  Returns:
    [episodes, turns * (O + S)] int32.
  """
  history = np.zeros((shown.shape[1], 0), np.int32)
  for turn, new in enumerate(shown):
    history = np.concatenate([history, new], axis=1)
    tokens = np.asarray(answer(history, turn), np.int32)
    # Zero means padding to one of the sides.
    tokens = np.where(tokens == PAD, PAD + 1, tokens)
    history = np.concatenate([history, tokens], axis=1)
  return history


def step_rows(work, turn, width):
  """One row for each conversation at one of its steps, padded on the left.

  Args:
    work: The conversations.
    turn: Number of the step.
    width: Length of the rows, at least that of prompt and response.

  Returns:
    Tokens [N, width] and real [N, width] (False on padding).
  """
  sizes = work.spec["update"]
  size = sizes["observe"] + sizes["sample"]
  length = (turn + 1) * size
  tokens = np.full((len(work.tokens), width), PAD, np.int32)
  real = np.zeros(tokens.shape, bool)
  tokens[:, width - length :] = work.tokens[:, :length]
  real[:, width - length :] = True
  return tokens, real


def step_slice(work, turn):
  """Where the sampled tokens of a step lie among all of a conversation."""
  sample = work.spec["update"]["sample"]
  return slice(turn * sample, (turn + 1) * sample)


def timed(call, repeats, budget_s):
  """Times calls, the first two apart: one side compiles in its second, too.

  Once `budget_s` seconds are spent, one call that counts is enough.

  Returns:
    The result of the first call, and {"warm_up_s", "seconds", "median_s"}.
  """
  took = []
  while len(took) <= WARM_UP or (
    len(took) < WARM_UP + repeats and sum(took) < budget_s
  ):
    start = time.perf_counter()
    result = call()
    took.append(time.perf_counter() - start)
    if len(took) == 1:
      first = result
  return first, {
    "warm_up_s": sum(took[:WARM_UP]),
    "seconds": took[WARM_UP:],
    "median_s": statistics.median(took[WARM_UP:]),
  }


def last_line(error):
  """The last line of what went wrong."""
  lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
  return lines[-1].strip()


def _sampling(side, work):
  """Jobs of sampling: (kind, size, row, call, number of sampled tokens)."""
  spec = work.spec
  vocab = spec["model"]["vocab_size"]
  decode, rollout = spec["decode"], spec["rollout"]
  jobs = [("decode", batch, 1, batch, decode) for batch in decode["batches"]]
  jobs += [
    ("rollout", turns, turns, rollout["episodes"], rollout)
    for turns in rollout["turns"]
  ]
  for kind, size, turns, episodes, sizes in jobs:
    shown = observations(vocab, turns, episodes, sizes["observe"])
    for row, talker in side.talkers(turns).items():

      def make(talker=talker, shown=shown, sizes=sizes):
        play = talker(shown.shape[1], shown.shape[0], sizes)
        return lambda: play(shown)

      count = episodes * turns * sizes["sample"]
      length = turns * (sizes["observe"] + sizes["sample"])
      yield kind, size, row, make, count, (episodes, length)


def _measure_sampling(side, work):
  for kind, size, row, make, count, shape in _sampling(side, work):
    entry = {"kind": kind, "size": size, "row": row}
    try:
      history, times = timed(
        make(), work.spec["repeats"], work.spec["budget_s"]
      )
      if history.shape != shape:
        raise RuntimeError(f"{history.shape} tokens came back, not {shape}")
      entry |= times | {"tokens_per_s": count / times["median_s"]}
    except Exception as error:  # The other rows go on.
      entry["error"] = last_line(error)
    print(_said(entry), file=sys.stderr, flush=True)
    yield entry


def _measure_updates(side, work):
  for row, make in side.updates().items():
    entry = {"kind": "update", "size": work.spec["update"]["turns"], "row": row}
    try:
      first, times = timed(make(), work.spec["repeats"], work.spec["budget_s"])
      entry |= times | first
    except Exception as error:
      entry["error"] = last_line(error)
    print(_said(entry), file=sys.stderr, flush=True)
    yield entry


def _said(entry):
  if "error" in entry:
    return f"{entry['row']}, {entry['kind']} {entry['size']}: {entry['error']}"
  return (
    f"{entry['row']}, {entry['kind']} {entry['size']}: "
    f"{entry['median_s']:.3f} s, warm-up {entry['warm_up_s']:.1f}"
  )


def check(work, logp):
  """Greatest difference to the reference's log-probs of sampled tokens."""
  return float(np.abs(np.asarray(logp) - work.reference_logp).max())


def main(make_side):
  """Runs one side: `python SIDE.py FOLDER`; writes FOLDER/NAME.json."""
  work = Work(sys.argv[1])
  side = make_side(work)
  found = {"versions": side.versions(), "rows": []}
  try:
    found["logp_difference"] = check(work, side.logprobs())
  except Exception as error:
    found["logp_error"] = last_line(error)
  found["rows"] += _measure_updates(side, work)
  found["rows"] += _measure_sampling(side, work)
  path = work.folder / f"{side.name}.json"
  path.write_text(json.dumps(found, indent=2) + "\n")
