"""What a whole run holds on each device: learner, sampler, and both at once.

JAX is imported inside the functions: `aot_check.py` sets the environment first.
"""

import collections
import math
from typing import Any, NamedTuple

import aot_programs
import roofline

# Of a device's memory, what a run may plan with: allocators leave gaps.
SHARE = 0.92


class Held(NamedTuple):
  """Bytes of one device.

  Attributes:
    parts: By what holds them, from the first update on.
    update: What the update's program takes beside them.
    hand_over: What handing the weights over takes beside them: the largest
      layer once as it lies and once as the sampler reads it.
    slot: What one device holds of a slot of the sampler with a whole context.
    memory: Of the device.
    shared_by: Devices that share weights and slots.
    local: Devices of a process.
  """

  parts: dict[str, int]
  update: int
  hand_over: int
  slot: int
  memory: int
  shared_by: int
  local: int

  @property
  def peak(self) -> int:
    """Bytes without any slot, while what takes most is under way."""
    return sum(self.parts.values()) + max(self.update, self.hand_over)

  @property
  def slots(self) -> int:
    """Slots of a device, or of those that share; 0 if nothing fits.

    A run of `num_slots` gives as many to each (`sampler.split.parts_of`).
    """
    return max(0, int(SHARE * self.memory - self.peak) // self.slot)

  @property
  def groups(self) -> int:
    """Devices of a process, or groups of those that share, with slots each."""
    return self.local // self.shared_by

  @property
  def num_slots(self) -> int:
    """What `sampler.num_slots` is with so many slots: those of a process."""
    return self.slots * self.groups


def held(
  setting: aot_programs.Setting, mesh: Any, update: int, memory: int
) -> Held:
  """Counts a run whose learner is `setting`.

  Every device samples. As many as `setting.sampler_tensor` share the weights in
  bfloat16, and the cache in bfloat16 of their slots. It lies there while the
  learner updates.

  Args:
    setting: The learner's program.
    mesh: Its devices.
    update: Bytes that the compiled update takes beside its arguments.
    memory: Bytes of a device.
  """
  import jax
  import jax.numpy as jnp

  from steppo_jax.algorithms import table as algorithms_table
  from steppo_jax.learner import learner
  from steppo_jax.models import mesh as mesh_lib
  from steppo_jax.models import transformer
  from steppo_jax.sampler import split

  model = aot_programs.model_of(setting)
  spec = learner.make_spec(
    model, algorithms_table.get("steppo"),
    aot_programs.options_of(setting), mesh, num_updates=100, seed=0,
  )  # fmt: skip
  policy = transformer.abstract_params(model)
  as_type = lambda kind: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, kind), policy
  )
  narrow, frozen = as_type(jnp.bfloat16), as_type(setting.frozen)
  adapters = setting.program == "learner-lora"
  state = jax.eval_shape(
    lambda p: learner.init(spec, p), frozen if adapters else policy
  )
  sizes = lambda tree, where: sum(
    math.prod(at.shard_shape(x.shape)) * x.dtype.itemsize
    for x, at in zip(
      jax.tree.leaves(tree),
      jax.tree.leaves(mesh_lib.placements(where, tree)),
      strict=True,
    )
  )
  parts = setting.sampler_tensor
  of_process = collections.Counter(d.process_index for d in mesh.devices.flat)
  local = min(of_process.values())
  split.parts_of(local, local, parts, "tpu")  # Raises what a run would.
  split.check(model, parts)
  alone = mesh_lib.make_model_mesh(
    data=mesh.size // parts, fsdp=1, tensor=parts,
    devices=mesh.devices.flatten(),
  )  # fmt: skip
  named = {
    "policy": state.policy,
    "policy's optimizer": state.policy_optimizer,
    "critic": state.critic,
    "critic's optimizer": state.critic_optimizer,
    "reference": None if adapters else frozen,
  }
  holds = {name: sizes(tree, mesh) for name, tree in named.items()}
  holds["sampler"] = sizes(narrow, alone)
  largest = (
    max(sizes({name: x}, alone) for name, x in narrow["layers"].items())
    // model.num_layers
  )
  largest = max(largest, sizes({"embed": narrow["embed"]}, alone))
  heads = split.part(model, parts).num_kv_heads / model.num_kv_heads
  slot = int(roofline.kv_bytes(model) * setting.row_length * heads)
  return Held(holds, update, 2 * largest, slot, memory, parts, local)


def share_of_peak(
  setting: aot_programs.Setting, seconds: float, tokens: int, flops: float
) -> float:
  """MFU: 6 FLOPs a parameter of the policy and token, of what a device can.

  Passes of critic and reference, and what is computed again, count as nothing.

  Args:
    setting: Whose model it is.
    seconds: Of one update.
    tokens: Of one device in it.
    flops: A second, of a device.
  """
  model = aot_programs.model_of(setting)
  weights = roofline.matmul_weights(model) + roofline.logit_weights(model)
  return 6 * weights * tokens / seconds / flops


def report(setting: aot_programs.Setting, found: Held) -> str:
  """One line: bytes by what holds them, and what fits."""
  gib = lambda x: f"{x / 2**30:.2f}"
  parts = ", ".join(f"{k} {gib(v)}" for k, v in found.parts.items() if v)
  verdict = "DOES NOT FIT"
  if found.slots:
    where = "a device"
    if found.shared_by > 1:
      where = f"each {found.shared_by} devices"
    verdict = (
      f"fits, {found.slots} slots of {setting.row_length} {where} "
      f"(sampler.num_slots={found.num_slots}, of a process)"
    )
  return (
    f"  whole run: {parts}; update {gib(found.update)}, hand-over "
    f"{gib(found.hand_over)} beside them; {gib(found.slot)} a slot; of "
    f"{gib(found.memory)}: {verdict}"
  )


def as_json(found: Held) -> dict[str, Any]:
  """The same for machines."""
  return found._asdict() | {
    "peak": found.peak, "slots": found.slots, "fits": found.slots > 0,
    "num_slots": found.num_slots,
  }  # fmt: skip
