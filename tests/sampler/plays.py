"""A sampler and what is asked of it, for tests of its programs and cache."""

import numpy as np
import worlds

from steppo_jax import types
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options


def make(model, params, *, context, slots=10, lengths=(4, 16, 64)):
  made = engine_lib.SlotEngine(
    model,
    options.SamplerConfig(num_slots=slots, prefill_lengths=lengths),
    context=context,
    max_new_tokens=8,
    end_of_turn_id=-1,
    seed=0,
  )
  made.set_params(params, 0)
  return made


def play(engine):
  """Groups that share prompts, of many lengths, over three turns."""
  rng = np.random.default_rng(0)
  vocab = worlds.tokenizer().vocab_size
  prompts = [
    rng.integers(3, vocab, n).astype(np.int32)
    for n in (3, 40, 40, 11, 29, 1, 70)
  ]
  prompts[2] = prompts[1].copy()
  found = []
  # Fewer and fewer sessions go on, so that all sizes of sampling are called.
  for turn, live in enumerate((7, 3, 1)):
    answers = engine.generate(
      [
        types.Request(str(n), prompt, (n, turn), 3 + n % 5, 1.0)
        for n, prompt in enumerate(prompts[:live])
      ]
    )
    found += answers
    prompts = [
      np.concatenate([p, a.response_ids, rng.integers(3, vocab, 9)])
      for p, a in zip(prompts, answers, strict=False)
    ]
  return found
