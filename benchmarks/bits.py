"""How often sampler and learner agree to the bit on log-probabilities.

  python benchmarks/bits.py [--model small]

Eight sessions of five turns, 30 tokens shown and 20 sampled in each, random
weights in float32. Of every sampled token the log-probability is known in three
ways: as the sampler gave it (history read turn by turn, tokens decoded one by
one), as the sampler gives it to the same tokens if all before them is read anew
by prefill, and as the learner's own forward pass computes it. Printed is for
each pair the share of tokens with equal bits, and the largest difference. The
last line is one JSON object.
"""

import argparse
import functools
import json

import builds
import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import types
from steppo_jax.models import attend, presets, transformer
from steppo_jax.ops import logprobs

SESSIONS, TURNS, SHOWN, SAMPLED, VOCAB = 8, 5, 30, 20, 512


@functools.partial(jax.jit, static_argnames="model")
def learned(model, params, rows):
  """[B, T] log-probs of rows of tokens as the learner computes them."""
  positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
  run = attend.over_rows(
    jnp.full(rows.shape, rows.shape[1]), positions, block=64,
    implementation="xla", mesh=None,
  )  # fmt: skip
  hidden = transformer.apply(model, params, rows, positions, run)
  return logprobs.next_token_logprobs(
    hidden, transformer.unembedding(params), rows,
    jnp.maximum(positions - 1, 0), positions > 0, chunk=64, temperature=1.0,
    softcap=None,
  )[0]  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--model", default="small")
  args = parser.parse_args()
  model = presets.get(args.model, VOCAB)
  make = lambda: builds.make_engine(
    args.model, 0, slots=SESSIONS, context=TURNS * (SHOWN + SAMPLED),
    max_new_tokens=SAMPLED,
  )  # fmt: skip
  ask = lambda n, ids, turn, new: types.Request(
    str(n), ids.astype(np.int32), (n, turn), new, 1.0
  )
  rng, kept, anew = np.random.default_rng(0), make(), make()
  shown = lambda: rng.integers(3, VOCAB, SHOWN)
  prompts = [shown() for _ in range(SESSIONS)]
  sampled, read, places = [], [], []
  for turn in range(TURNS):
    answers = kept.generate(
      [ask(n, ids, turn, SAMPLED) for n, ids in enumerate(prompts)]
    )
    for n in range(SESSIONS):
      anew.release(str(n))
    # The first token of each answer, all before it read by prefill: the same
    # draw gives the same token.
    again = anew.generate(
      [ask(n, ids, turn, 1) for n, ids in enumerate(prompts)]
    )
    for n, (one, two) in enumerate(zip(answers, again, strict=True)):
      start = len(prompts[n])
      places += [(n, start + i) for i in range(len(one.response_ids))]
      sampled += one.behaviour_logp.tolist()
      same = one.response_ids[0] == two.response_ids[0]
      read += [two.behaviour_logp[0] if same else np.nan]
      read += [np.nan] * (len(one.response_ids) - 1)
      prompts[n] = np.concatenate([prompts[n], one.response_ids, shown()])
  rows = np.stack(prompts)[:, : TURNS * (SHOWN + SAMPLED)].astype(np.int32)
  params = jax.jit(lambda key: transformer.init(model, key))(jax.random.key(0))
  computed = np.asarray(learned(model, params, rows))
  found = {
    "sampled": np.float32(sampled),
    "read anew": np.float32(read),
    "learner": np.float32([computed[place] for place in places]),
  }
  result = {"model": args.model, "tokens": len(places), "backend":
            jax.default_backend()}  # fmt: skip
  for one, two in (
    ("sampled", "learner"), ("sampled", "read anew"), ("read anew", "learner")
  ):  # fmt: skip
    x, y = found[one], found[two]
    known = ~np.isnan(x) & ~np.isnan(y)
    x, y = x[known], y[known]
    result[f"{one} = {two}"] = {
      "tokens": int(known.sum()),
      "equal": float((x == y).mean()),
      "largest": float(np.abs(x - y).max()),
    }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
