"""How close update and decode come to what this machine can do.

  python benchmarks/machine.py [--quick] [--model NAME ...]

The peak is a float32 product of 2,048 x 2,048 matrices on all cores, the
bandwidth the sum of a 256 MB array, both in this run. An update is StepPO's,
one mini-batch, one epoch: values of all rows, reference log-probs, critic and
policy forward and backward. What is counted are the products that the rows
need, forward once and backward twice:

  2 tokens (layer matrices) + 4 H D (visible pairs) a layer
  + 2 (sampled tokens) W V where the policy's log-probs are needed

Parts of the policy's gradient are also timed alone. Decode is counted in bytes:
the weights and the cache up to the context in use, once for each token that all
slots read side by side. The last line is one JSON object. Compare within one
run only.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import layouts
import numpy as np

from steppo_jax import algorithms, mesh, packing, run_folder, types, update
from steppo_jax import learner as learner_lib
from steppo_jax.batch import TokenBatch
from steppo_jax.models import presets, transformer
from steppo_jax.sampler import engine as engine_lib

VOCAB = {"smollm2_135m": 49_152}
# Episodes of 1,000 tokens in the update, and repeats.
UPDATES = {"small": (8, 3), "base_20m": (4, 2), "smollm2_135m": (1, 1)}
ROW, BLOCK, PROMPT, NEW = 1024, 256, 96, 32


def seconds(function, *args, repeats=3):
  """Median seconds of a jitted function, compiled before."""
  function = jax.jit(function)
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def peaks():
  """(FLOP/s, bytes/s) of this machine."""
  a = jnp.ones((2048, 2048))
  flops = 2 * 2048**3 / seconds(lambda a: a @ a, a, repeats=5)
  x = jnp.ones((64, 1 << 20))
  # One partial sum a core and column: nothing but reading takes time.
  total = lambda x: x.reshape(-1, 1024).sum(0)
  return flops, x.nbytes / seconds(total, x, repeats=5)


def gradient_flops(model, rows):
  """FLOPs of (trunk, attention, head) forward for the rows of a batch."""
  tokens = int((rows.subtree_end > np.arange(rows.tokens.shape[1])).sum())
  column = np.arange(rows.tokens.shape[1])
  pairs = int((rows.subtree_end - column).clip(0).sum())
  heads = model.num_heads * model.head_dim
  kv = model.num_kv_heads * model.head_dim
  matrices = model.width * (2 * heads + 2 * kv + 3 * model.mlp_width)
  trunk = 2 * tokens * matrices * model.num_layers
  attend = 4 * heads * pairs * model.num_layers
  head = 2 * int((rows.step_ids > 0).sum()) * model.width * model.vocab_size
  return trunk, attend, head


def measure_update(name, peak):
  """Share of the peak in an update, and what its parts take alone."""
  episodes, repeats = UPDATES[name]
  model = presets.get(name, VOCAB.get(name, 512))
  # Small ids: what is looked up does not matter, the vocabulary's size does.
  made = layouts.synthetic(-(-episodes // layouts.GROUP), 512, rebuilt=False)
  packed = packing.pack(
    made[:episodes], [0] * episodes, packing.PackingConfig(row_length=ROW),
    num_parts=1, rows_multiple=1, pad_id=0, rows_per_part=episodes,
  )  # fmt: skip
  devices = mesh.make_mesh(1)
  parts = learner_lib.make_parts(
    model,
    algorithms.get("steppo"),
    learner_lib.LearnerConfig(
      num_minibatches=1, microbatch_rows=1, critic_epochs=1, critic_warmup=0
    ),
    devices,
    num_updates=100,
    seed=0,
  )
  params = transformer.init(model, jax.random.key(0))
  state = learner_lib.init(parts, params)
  batch = learner_lib.put_batch(packed, devices)
  run = functools.partial(update.update, parts)
  update_s = seconds(run, state, params, batch, repeats=repeats)
  rows = TokenBatch(**{k: v[0] for k, v in packed.tokens.items()})
  trunk, attend, head = gradient_flops(model, rows)
  # Critic: 1 + 3 of trunk and attention. Policy: 1 + 3, with the head.
  total = 8 * (trunk + attend) + 4 * head
  row = jax.tree.map(lambda x: jnp.asarray(x[:1]), rows)
  found = {
    "parameters": transformer.num_params(params),
    "tokens": packed.unique_tokens,
    "update_s": update_s,
    "gflops": total / update_s / 1e9,
    "share_of_peak": total / update_s / peak,
  }
  return found | _parts(parts, params, row, peak)


def _parts(parts, params, row, peak):
  """Seconds and shares of the parts of one row's policy gradient."""
  model = parts.model
  one = jax.tree.map(np.asarray, row)
  trunk, attend, head = gradient_flops(model, one)
  whole = lambda p: parts.logp(p, row)[0].sum()
  mute = lambda q, k, v: q  # what is left without attention
  blind = lambda p: transformer.apply(
    model, p, row.tokens, row.positions, mute
  ).sum()
  t = row.tokens.shape[1]
  shape = lambda heads: (1, t, heads, model.head_dim)
  q = jnp.ones(shape(model.num_heads))
  k = v = jnp.ones(shape(model.num_kv_heads))
  layer = lambda qkv: parts.attend(row)(*qkv).sum()
  found = {
    "gradient_s": seconds(jax.grad(whole), params),
    "without_attention_s": seconds(jax.grad(blind), params),
    "attention_s": model.num_layers * seconds(jax.grad(layer), (q, k, v)),
  }
  found["rest_s"] = (
    found["gradient_s"] - found["without_attention_s"] - found["attention_s"]
  )
  found["gradient_share"] = (
    3 * (trunk + attend + head) / found["gradient_s"] / peak
  )
  found["trunk_share"] = 3 * trunk / found["without_attention_s"] / peak
  found["attention_share"] = 3 * attend / found["attention_s"] / peak
  return found


def measure_decode(name, bandwidth, slot_counts):
  """Share of the bandwidth while decoding, by number of slots."""
  model = presets.get(name, VOCAB.get(name, 512))
  params = transformer.init(model, jax.random.key(0))
  weights = 4 * transformer.num_params(params)
  found = {}
  for slots in slot_counts:
    engine = engine_lib.SlotEngine(
      model,
      engine_lib.SamplerConfig(num_slots=slots, prefill_lengths=(PROMPT,)),
      context=PROMPT + NEW,
      max_new_tokens=NEW,
      end_of_turn_id=-1,
      seed=0,
    )
    engine.set_params(params, 0)
    prompt = np.arange(3, 3 + PROMPT, dtype=np.int32)

    def turn(key, new, engine=engine, slots=slots, prompt=prompt):
      start = time.perf_counter()
      engine.generate([
        types.Request(str(n), prompt, (key, n), new, 1.0) for n in range(slots)
      ])  # fmt: skip
      return time.perf_counter() - start

    # A turn of one token is the reading of the prompt and nothing else.
    for key, new in enumerate((1, NEW, 1)):
      turn(key, new)
    steps = (NEW - 1) * 3
    spent = sum(turn(9 + key, NEW) - turn(19 + key, 1) for key in range(3))
    cache = 8 * slots * model.num_kv_heads * model.head_dim * model.num_layers
    moved = weights + cache * (PROMPT + NEW)
    found[slots] = {
      "tokens_per_s": slots * steps / spent,
      "ms_per_step": spent / steps * 1e3,
      "share_of_bandwidth": moved * steps / spent / bandwidth,
      "gflops": 2 * weights / 4 * slots * steps / spent / 1e9,
    }
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="small model only")
  parser.add_argument("--model", nargs="+", choices=list(UPDATES))
  args = parser.parse_args()
  names = args.model or (["small"] if args.quick else list(UPDATES))
  flops, bandwidth = peaks()
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "peak_gflops": flops / 1e9,
    "bandwidth_gb_s": bandwidth / 1e9,
    "update": {},
    "decode": {},
  }
  for key, value in result.items():
    if not isinstance(value, dict):
      print(f"{key:15} {value}")
  for name in names:
    result["update"][name] = found = measure_update(name, flops)
    print(f"\n{name}: update")
    for key, value in found.items():
      print(f"  {key:22} {value:.4g}")
    slots = (1, 8) if args.quick else (1, 8, 64)
    result["decode"][name] = found = measure_decode(name, bandwidth, slots)
    print(f"{name}: decode")
    for count, numbers in found.items():
      shown = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
      print(f"  {count:3} slots: {shown}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
