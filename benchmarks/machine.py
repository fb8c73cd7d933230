"""How close update and decode come to what this machine can do.

  python benchmarks/machine.py [--quick] [--only update|decode] [--model NAME]

The peak is a float32 product of 2,048 x 2,048 matrices on all cores; the
bandwidth that of reading 512 MB, as a sum or as a matrix times a vector,
whichever is faster. Both are measured in this run.

Update: StepPO without a reference policy on packed episodes of 10 turns of 100
tokens, one mini-batch, one epoch: values of all tokens, then critic and policy,
forward and backward. Counted are the products that the stored tokens need,
forward once and backward twice; nothing for padding, hidden pairs, or what is
computed again in the backward pass:

  layers     7 * 2 tokens (parameters of the layers' matrices)
  attention  7 * 4 H D (pairs of tokens that see each other) a layer
  log-probs  3 * 2 (sampled tokens) W V

7 is 1 for the values and 3 each for critic and policy. Each part is also run
alone, as often as in an update; "rest" is what is left of the update's time.

Decode: `SlotEngine.generate`, time of a token in all slots side by side, the
reading of the prompt subtracted. Counted are the bytes of weights and cache
that a token step has to read, and the products 2 slots (parameters of all
matrices); parts alone as above. The last line is one JSON object. Compare
within one run only.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import synthetic

from steppo_jax import types
from steppo_jax.models import presets, transformer
from steppo_jax.models.config import FULL
from steppo_jax.ops import logprobs
from steppo_jax.sampler import cache_attention, draw
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options as sampler_options
from steppo_jax.storage import folder as run_folder

VOCAB = {"smollm2_135m": 49_152}
# Episodes in the update.
EPISODES = {"small": 8, "base_20m": 4, "smollm2_135m": 1}
ROW, PROMPT, NEW = 1024, 96, 32


def seconds(function, *args, repeats=3):
  """Median seconds of a jitted function, compiled before."""
  function = jax.jit(function).lower(*args).compile()
  times = []
  while len(times) < repeats + 1:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
    if times[0] > 5:
      break
  return statistics.median(times[1:] or times)


def peaks():
  """(FLOP/s, bytes/s) of this machine."""
  a = jnp.ones((2048, 2048))
  flops = 2 * 2048**3 / seconds(lambda a: a @ a, a, repeats=9)
  x = jnp.ones((1 << 16, 2048))
  ways = (lambda x: x.reshape(-1, 1024).sum(0), lambda x: x @ x[0])
  return flops, x.nbytes / min(seconds(way, x, repeats=5) for way in ways)


def model_of(name):
  return presets.get(name, VOCAB.get(name, 512))


def layer_matrices(model):
  """Parameters of the matrices of all layers."""
  heads = model.num_heads * model.head_dim
  kv = model.num_kv_heads * model.head_dim
  one = model.width * (2 * heads + 2 * kv + 3 * model.mlp_width)
  return one * model.num_layers


def forward_flops(model, rows):
  """FLOPs of the products of one forward pass, by part."""
  length = np.clip(rows.subtree_end - np.arange(rows.tokens.shape[-1]), 0, None)
  heads = model.num_heads * model.head_dim
  return {
    "layers": 2 * int((length > 0).sum()) * layer_matrices(model),
    "attention": 4 * heads * int(length.sum()) * model.num_layers,
    "log-probs": 2
    * int((rows.step_ids > 0).sum())
    * model.width
    * model.vocab_size,
  }


def measure_update(name, quick, peak):
  """Share of the peak in an update and in its parts."""
  model = model_of(name)
  options = synthetic.options(microbatch_rows=1)
  count = max(1, EPISODES[name] // 4) if quick else EPISODES[name]
  # Small ids: what is looked up does not matter, the vocabulary's size does.
  made = synthetic.conversations(1, 512, group=count)
  packed, _ = synthetic.pack(made, "packed", ROW, options)
  batch = synthetic.put(packed)
  program = synthetic.compiled(model, options, batch)
  update_s, program = synthetic.timed(program, batch, 1 if quick else 3)
  row = jax.tree.map(lambda x: jnp.asarray(x[0, :1]), packed.tokens)
  spent = parts_of_update(
    synthetic.parts_of(model, options), program.state.policy, row,
    int(packed.rows_used.sum()),
  )  # fmt: skip
  spent["rest"] = update_s - sum(spent.values())
  need = forward_flops(model, packed.tokens)
  need = {k: n * (3 if k == "log-probs" else 7) for k, n in need.items()}
  return {
    "parameters": transformer.num_params(program.state.policy),
    "tokens": packed.unique_tokens,
    "update_s": update_s,
    "tokens_per_s": packed.unique_tokens / update_s,
    "share_of_peak": sum(need.values()) / update_s / peak,
    "share_of_time": {k: s / update_s for k, s in spent.items()},
    "part_share_of_peak": {k: n / spent[k] / peak for k, n in need.items()},
  }


def parts_of_update(parts, params, row, rows):
  """Seconds that the parts of an update take alone."""
  model, length = parts.model, row.tokens.shape[1]
  trunk = lambda p: transformer.apply(
    model, p, row.tokens, row.positions, lambda q, k, v: q
  ).sum()
  shape = lambda heads: (1, length, heads, model.head_dim)
  draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape)
  q = draw(0, *shape(model.num_heads))
  k, v = (draw(i, *shape(model.num_kv_heads)) for i in (1, 2))
  attend = lambda qkv: parts.attend(row)(*qkv).sum()
  head = lambda hidden, table: logprobs.next_token_logprobs(
    hidden, table, row.tokens, row.parent, row.step_ids > 0,
    chunk=parts.config.logprob_chunk, temperature=1.0, softcap=None,
  )[0].sum()  # fmt: skip
  optimizer = parts.policy_optimizer

  def step(params, state):
    updates, state = optimizer.update(params, state, params)
    return optax.apply_updates(params, updates), state

  both = lambda f, *args: seconds(f, *args) + 2 * seconds(jax.grad(f), *args)
  hidden, table = draw(3, 1, length, model.width), params["embed"]["embedding"]
  return {
    "layers": rows * both(trunk, params),
    "attention": rows * model.num_layers * both(attend, (q, k, v)),
    "log-probs": rows * seconds(jax.grad(head, argnums=(0, 1)), hidden, table),
    # Two networks of about one size.
    "optimizer": 2 * seconds(step, params, optimizer.init(params)),
  }


def measure_decode(name, slots, peak, bandwidth):
  """Shares of bandwidth and peak while decoding, and what the parts take."""
  model = model_of(name)
  params = jax.device_put(synthetic.parameters(model))
  engine = engine_lib.SlotEngine(
    model,
    sampler_options.SamplerConfig(num_slots=slots, prefill_lengths=(PROMPT,)),
    context=PROMPT + NEW,
    max_new_tokens=NEW,
    end_of_turn_id=-1,
    seed=0,
  )
  engine.set_params(params, 0)
  prompt = np.arange(3, 3 + PROMPT, dtype=np.int32)

  def turn(key, new):
    start = time.perf_counter()
    engine.generate(
      [types.Request(str(n), prompt, (key, n), new, 1.0) for n in range(slots)]
    )
    return time.perf_counter() - start

  # A turn of one token reads the prompt and samples once, as every turn does.
  for key, new in enumerate((1, NEW, 1)):
    turn(key, new)
  pairs = [(turn(9 + key, NEW), turn(19 + key, 1)) for key in range(5)]
  step_s = statistics.median(long - short for long, short in pairs) / (NEW - 1)
  heads = model.num_kv_heads * model.head_dim * model.num_layers
  matrices = layer_matrices(model) + model.width * model.vocab_size
  read = 4 * (matrices + 2 * slots * heads * (PROMPT + NEW // 2))
  spent = parts_of_decode(model, transformer.by_layer(params), slots)
  spent["rest"] = step_s - sum(spent.values())
  return {
    "ms_per_step": step_s * 1e3,
    "tokens_per_s": slots / step_s,
    "share_of_bandwidth": read / step_s / bandwidth,
    "share_of_peak": 2 * slots * matrices / step_s / peak,
    "share_of_time": {k: s / step_s for k, s in spent.items()},
  }


def parts_of_decode(model, params, slots):
  """Seconds that the parts of one token step take alone, in loops of steps."""
  context, never = PROMPT + NEW, 1e30
  position = jnp.full((slots, 1), context - 1)
  normal = lambda *shape: jax.random.normal(jax.random.key(0), shape)
  kv, size = model.num_kv_heads, model.head_dim
  cache = [
    (normal(1, slots, kv, size, context), normal(1, slots, kv, context, size))
    for _ in range(model.num_layers)
  ]
  mute = [lambda q, k, v: q] * model.num_layers
  keys = jax.random.split(jax.random.key(0), slots)
  heat = jnp.ones(slots)

  # Each step waits for the last one's result, as tokens do.
  def layers(tokens, params, *_):
    hidden = transformer.apply_layerwise(model, params, tokens, position, mute)
    return tokens + (hidden[..., 0] > never)

  def attention(q, _, cache, __):
    for layer in cache:
      q = cache_attention.attend(q, layer, None, position, FULL)
    return q

  def sampling(hidden, params, _, i):
    logits = transformer.logits(model, params, hidden)
    token, _ = draw.tokens(logits, keys, position[:, 0] + i, heat)
    return hidden + (token[:, None] > never)

  starts = {
    layers: jnp.zeros((slots, 1), jnp.int32),
    attention: normal(slots, 1, model.num_heads, model.head_dim),
    sampling: normal(slots, model.width),
  }

  def repeated(function, x, params, cache):
    body = lambda i, x: function(x, params, cache, i)
    return jax.lax.fori_loop(0, NEW, body, x)

  return {
    function.__name__: seconds(
      functools.partial(repeated, function), x, params, cache, repeats=5
    )
    / NEW
    for function, x in starts.items()
  }


def show(title, found):
  print(f"\n{title}")
  for key, value in found.items():
    if isinstance(value, dict):
      text = ", ".join(f"{k} {v:.0%}" for k, v in value.items())
    elif key.startswith("share"):
      text = f"{value:.0%}"
    else:
      text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    print(f"  {key:19} {text}")


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="small models")
  parser.add_argument("--only", choices=("update", "decode"))
  parser.add_argument("--model", nargs="+", choices=sorted(EPISODES))
  args = parser.parse_args()
  names = args.model or (["small"] if args.quick else list(EPISODES))
  peak, bandwidth = peaks()
  result = {
    "hardware": run_folder.hardware(),
    "commit": run_folder.commit(),
    "jax": jax.__version__,
    "peak_gflops": peak / 1e9,
    "read_gb_per_s": bandwidth / 1e9,
    "update": {},
    "decode": {},
  }
  for name, value in list(result.items())[:5]:
    print(f"{name:13} {value}")
  for name in names:
    if args.only != "decode":
      result["update"][name] = found = measure_update(name, args.quick, peak)
      show(f"{name}: update", found)
    if args.only == "update":
      continue
    found = result["decode"][name] = {}
    for slots in (1, 8, 64):
      found[slots] = measure_decode(name, slots, peak, bandwidth)
      show(f"{name}: decode, {slots} slots", found[slots])
  print(json.dumps(result))


if __name__ == "__main__":
  main()
