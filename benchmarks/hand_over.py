"""What handing weights to the sampler costs: from device to device, or by host.

  python benchmarks/hand_over.py [--quick] [--model NAME] [--repeats 5]

A policy with adapters lies on 8 host devices as a learner holds it, whole on
each ("data") or split (2 data x 2 fsdp x 2 tensor, "split"). Each way gives the
sampler its copy in a process of its own:

  devices   sampler.hand_over, one program that merges, cuts and puts together;
  host      merged, fetched whole by the host and put on the first device, as
            it was done before.

Seconds are medians over repeats, the first one (which compiles) left out; peak
memory is that of the process above what it held before, where the devices'
memory is the host's: what chips do side by side, each in its own memory, these
devices do one after the other in one. `host_bytes` are those of parameters that
NumPy sees. The last line is one JSON object. Compare within one run only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

FLAG = "--xla_force_host_platform_device_count=8"


def measure(way: str, split: bool, name: str, repeats: int) -> dict:
  """Seconds, bytes over the host and peak memory of one way."""
  import jax

  from steppo_jax import trees
  from steppo_jax.models import lora, mesh, presets, transformer
  from steppo_jax.models.options import LoraConfig
  from steppo_jax.sampler import hand_over

  model = presets.get(name, 4096)
  where = mesh.make_mesh(8)
  if split:
    where = mesh.make_model_mesh(data=2, fsdp=2, tensor=2)
  make = lambda key: lora.add(
    transformer.init(model, key), LoraConfig(rank=16), key
  )
  shapes = jax.eval_shape(make, jax.random.key(0))
  policy = jax.jit(make, out_shardings=mesh.placements(where, shapes))(
    jax.random.key(0)
  )
  by_layer = jax.jit(transformer.by_layer)

  def by_host():
    whole = mesh.to_host(lora.merge(policy))
    sizes = [x.nbytes for x in trees.flatten(whole).values()]
    return by_layer(jax.device_put(whole, jax.local_devices()[0])), sum(sizes)

  def by_devices():
    seen = jax.tree.leaves(hand_over.marked(policy))
    return hand_over.for_sampler(model, policy), sum(x.nbytes for x in seen)

  run = {"host": by_host, "devices": by_devices}[way]
  jax.block_until_ready(policy)
  before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
  for _ in range(repeats + 1):
    began = time.perf_counter()
    found, crossed = run()
    jax.block_until_ready(found)
    seconds.append(time.perf_counter() - began)
    del found
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "seconds": statistics.median(seconds[1:]),
    "host_bytes": crossed,
    "peak_mib": (after - before) / 1024,
    "parameters_mib": 4 * transformer.num_params(lora.off(policy)) / 2**20,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--quick", action="store_true", help="a small model")
  parser.add_argument("--model", default="smollm2_135m")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--way", choices=["devices", "host"])
  parser.add_argument("--split", action="store_true")
  args = parser.parse_args()
  name = "nano" if args.quick else args.model
  if args.way:
    print(json.dumps(measure(args.way, args.split, name, args.repeats)))
    return
  flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}"
  result = {"model": name}
  for mesh in ("data", "split"):
    found = {}
    for way in ("host", "devices"):
      command = [sys.executable, __file__, "--way", way, "--model", name,
                 "--repeats", str(args.repeats)]  # fmt: skip
      said = subprocess.run(
        command + ["--split"] * (mesh == "split"),
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True, stdout=subprocess.PIPE, text=True,
      ).stdout  # fmt: skip
      found[way] = json.loads(said.splitlines()[-1])
      print(f"{mesh:6}{way:8} {found[way]}")
    ours, before = found["devices"], found["host"]
    result[mesh] = (
      ours
      | {f"{key}_before": value for key, value in before.items()}
      | {"ratio": before["seconds"] / ours["seconds"]}
    )
  print(json.dumps(result))


if __name__ == "__main__":
  main()
