"""What a whole run holds on each device: learner, sampler, and both at once.

JAX is imported inside the functions: `aot_check.py` sets the environment first.
"""

import collections
import math
from typing import Any, NamedTuple

import aot_programs
import hlo
import roofline

# Of a device's memory, what a run may plan with: allocators leave gaps.
SHARE = 0.92


class HandOver(NamedTuple):
  """Bytes of one device while the sampler is given weights.

  Attributes:
    weights: What the sampler has afterwards.
    beside: What is there for a moment beside those and the learner's state:
      what the program needs, and what it makes on the way to its place.
    refused: What the compiler said if it refused for want of memory; `beside`
      is then its own figure of all that the program needs.
  """

  weights: int
  beside: int
  refused: str = ""


class Held(NamedTuple):
  """Bytes of one device.

  Attributes:
    parts: By what holds them, from the first update on.
    update: What the update's program takes beside them.
    hidden: What of `update` are hidden states, kept for a critic whose head
      reads the policy's layers.
    hand_over: What handing the weights over takes beside `parts`.
    slot: What one device holds of a slot of the sampler with a whole context;
      of two samplers, which have as many slots each, with `rollout.staleness`.
    memory: Of the device.
    shared_by: Devices that share weights and slots.
    local: Devices of a process.
  """

  parts: dict[str, int]
  update: int
  hidden: int
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


def hand_over(setting: aot_programs.Setting, mesh: Any) -> HandOver:
  """Compiles the program that gives the sampler the learner's weights.

  Args:
    setting: The learner's program.
    mesh: Its devices.
  """
  import jax

  lowered = aot_programs.lower_hand_over(setting, mesh)
  weights = _handed(setting, mesh, lowered.out_info)
  try:
    found = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return HandOver(weights, hlo.used(str(error)), str(error))
  beside = found.temp_size_in_bytes + found.generated_code_size_in_bytes
  # What comes out whole where devices share it is cut afterwards.
  beside += max(found.output_size_in_bytes - weights, 0)
  owners = [d.process_index for d in mesh.devices.flat]
  if setting.sampler_tensor > 1 and owners != sorted(owners):
    beside += weights  # Parts go to other devices before the first are gone.
  return HandOver(weights, beside)


def _handed(setting: aot_programs.Setting, mesh: Any, shapes: Any) -> int:
  """Bytes of a device that the weights of the sampler have in place."""
  import jax
  from jax.sharding import NamedSharding

  from steppo_jax.sampler import split

  model, parts = aot_programs.model_of(setting), setting.sampler_tensor
  sampler, specs = (
    aot_programs.sampler_mesh(setting, mesh),
    split.specs(model, parts),
  )
  if parts == 1:
    specs = jax.tree.map(lambda _: specs, shapes)
  sizes = jax.tree.map(
    lambda spec, x: math.prod(NamedSharding(sampler, spec).shard_shape(x.shape))
    * x.dtype.itemsize,
    specs, shapes,
  )  # fmt: skip
  return sum(jax.tree.leaves(sizes))


def held(
  setting: aot_programs.Setting,
  mesh: Any,
  update: int,
  handed: HandOver,
  memory: int,
) -> Held:
  """Counts a run whose learner is `setting`.

  Every device samples. As many as `setting.sampler_tensor` share the weights
  and the cache in bfloat16 of their slots. It lies there while the learner
  updates.

  With `setting.staleness` episodes are played meanwhile. New weights wait until
  the responses under way have ended, beside those that these are sampled with,
  and from a staleness of 2 the next ones can come while some wait. Evaluations
  have a sampler of their own, which keeps its weights and its cache.

  Args:
    setting: The learner's program.
    mesh: Its devices.
    update: Bytes that the compiled update takes beside its arguments.
    handed: Of `hand_over`.
    memory: Bytes of a device.
  """
  from steppo_jax.sampler import split

  model = aot_programs.model_of(setting)
  spec, state = aot_programs.start_of(setting, mesh)
  parts = setting.sampler_tensor
  of_process = collections.Counter(d.process_index for d in mesh.devices.flat)
  local = min(of_process.values())
  split.parts_of(local, local, parts, "tpu")  # Raises what a run would.
  split.check(model, parts)
  named = {
    "policy": state.policy,
    "policy's optimizer": state.policy_optimizer,
    "critic": state.critic,
    "critic's optimizer": state.critic_optimizer,
    "reference": aot_programs.policies(setting)[1],
  }
  holds = {name: _placed(mesh, tree) for name, tree in named.items()}
  holds["sampler"] = handed.weights
  ahead = setting.staleness > 0
  holds["weights that wait"] = handed.weights * ahead
  holds["evaluations' sampler"] = handed.weights * ahead
  more = handed.weights * (setting.staleness > 1)
  heads = split.part(model, parts).num_kv_heads / model.num_kv_heads
  slot = int(roofline.kv_bytes(model) * setting.row_length * heads)
  return Held(
    holds, update, _hidden(setting, spec, state, mesh), handed.beside + more,
    slot * (1 + ahead), memory, parts, local,
  )  # fmt: skip


def _placed(mesh: Any, tree: Any) -> int:
  """Bytes of a device that some arrays have on a mesh, from their shapes."""
  import jax

  from steppo_jax.models import mesh as mesh_lib

  sizes = jax.tree.map(
    lambda x, at: math.prod(at.shard_shape(x.shape)) * x.dtype.itemsize,
    tree, mesh_lib.placements(mesh, tree),
  )  # fmt: skip
  return sum(jax.tree.leaves(sizes))


def _hidden(setting: aot_programs.Setting, spec, state, mesh: Any) -> int:
  """Bytes of a device that hidden states of the whole batch have, if kept."""
  import jax.numpy as jnp

  from steppo_jax.models import mesh as mesh_lib

  batch = aot_programs.batch_of(setting, spec.config, mesh)
  if not spec.keeps(state.critic, state.policy, batch):
    return 0
  numbers = batch.tokens.tokens.size * spec.model.width
  kind = jnp.dtype(spec.model.compute)
  return numbers * kind.itemsize // mesh_lib.row_parts(mesh)


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
  hidden = ""
  if found.hidden:
    hidden = f" ({gib(found.hidden)} of it hidden states for the critic)"
  return (
    f"  whole run: {parts}; update {gib(found.update)}{hidden}, hand-over "
    f"{gib(found.hand_over)} beside them; {gib(found.slot)} a slot; of "
    f"{gib(found.memory)}: {verdict}"
  )


def as_json(found: Held) -> dict[str, Any]:
  """The same for machines."""
  return found._asdict() | {
    "peak": found.peak, "slots": found.slots, "fits": found.slots > 0,
    "num_slots": found.num_slots,
  }  # fmt: skip
