"""The programs that `aot_check.py` compiles, lowered from shapes alone.

JAX is imported inside the functions: `aot_check.py` sets the environment first.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import roofline

PROGRAMS = ("learner-full", "learner-lora", "prefill", "decode")
# Tokens of a run that prefill reads.
READ = 512


@dataclasses.dataclass(frozen=True)
class Setting:
  """One program on one topology.

  Attributes:
    topology: As libtpu names it, such as "v5e:4x4".
    model: Preset.
    program: One of `PROGRAMS`.
    data: Chips that hold different rows; 0 for what fsdp and tensor leave.
    fsdp: Chips that hold parts of every parameter.
    tensor: Chips that compute parts of every layer; of a sampler's program
      `SamplerConfig.tensor`.
    sampler_tensor: That of the run whose learner this is.
    row_length: Tokens of a row of the learner, and of a slot of the sampler.
    rows: Rows whose gradients are computed at once, or slots, in all.
    batch_rows: Least rows of the learner's whole batch: its episodes, if each
      prompt extends the one before. There are two microbatches in each
      mini-batch at least.
    staleness: `rollout.staleness` of the run whose learner this is.
    remat: What the learner computes again.
    layers: Layers in place of the preset's; 0 for the preset's.
    frozen: Type of parameters that are not trained: under adapters the
      policy's, and the reference policy's otherwise. Runs hold the type that
      they are stored in if they compute in bfloat16, and float32 otherwise.
    attention: `SamplerConfig.attention`.
    fits: What is expected.
  """

  topology: str
  model: str
  program: str
  data: int = 0
  fsdp: int = 1
  tensor: int = 1
  sampler_tensor: int = 1
  row_length: int = 4096
  rows: int = 16
  batch_rows: int = 128
  staleness: int = 0
  remat: str = "full"
  layers: int = 0
  frozen: str = "float32"
  attention: str = "auto"
  fits: bool = True


@contextlib.contextmanager
def as_on(platform: str) -> Iterator[None]:
  """What a program is made of depends on where it is going to run."""
  import jax

  here = jax.default_backend
  jax.default_backend = lambda: platform
  try:
    yield
  finally:
    jax.default_backend = here


def model_of(setting: Setting):
  """The preset in bfloat16, as pods run it."""
  from steppo_jax.models import presets

  changes = {"num_layers": setting.layers} if setting.layers else {}
  vocab = None if setting.model in presets.VOCABULARIES else 512
  return dataclasses.replace(
    presets.get(setting.model, vocab),
    compute="bfloat16", remat=setting.remat, **changes,
  )  # fmt: skip


def options_of(setting: Setting) -> Any:
  """StepPO's options: all parameters and a critic of its own, or adapters."""
  from steppo_jax.learner import options
  from steppo_jax.models import options as models_options

  adapters = setting.program == "learner-lora"
  return options.LearnerConfig(
    microbatch_rows=setting.rows,
    critic_trunk="policy" if adapters else "own",
    lora=models_options.LoraConfig(rank=32 if adapters else 0),
  )


def lower_learner(setting: Setting, mesh: Any) -> Any:
  """StepPO's update.

  Trained parameters are float32, as Adam needs them. Under adapters the
  critic's head reads the policy's layers.
  """

  from steppo_jax.algorithms import table as algorithms_table
  from steppo_jax.learner import learner
  from steppo_jax.models import mesh as mesh_lib

  model, config = model_of(setting), options_of(setting)
  made = learner.Learner(
    model, algorithms_table.get("steppo"), config, mesh, num_updates=100, seed=0
  )
  policy, reference = policies(setting)
  if reference is not None:
    reference = mesh_lib.shaped(mesh, reference)
  return made.lower(policy, reference, batch_of(setting, config, mesh))


def policies(setting: Setting) -> tuple[Any, Any]:
  """Shapes of the policy that a run is given, and of its reference.

  StepPO has a KL to where it started, which under adapters is the policy
  without them: the second is None.
  """
  import jax

  from steppo_jax.models import transformer

  policy = transformer.abstract_params(model_of(setting))
  frozen = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, setting.frozen), policy
  )
  return (
    (frozen, None) if setting.program == "learner-lora" else (policy, frozen)
  )


def start_of(setting: Setting, mesh: Any) -> tuple[Any, Any]:
  """What the update is made of, and shapes of the learner's state."""
  import functools

  import jax

  from steppo_jax.algorithms import table as algorithms_table
  from steppo_jax.learner import learner

  spec = learner.make_spec(
    model_of(setting), algorithms_table.get("steppo"), options_of(setting),
    mesh, num_updates=100, seed=0,
  )  # fmt: skip
  start = functools.partial(learner.init, spec)
  return spec, jax.eval_shape(start, policies(setting)[0])


def lower_hand_over(setting: Setting, mesh: Any) -> Any:
  """What gives the sampler of a run the weights of its learner."""
  from steppo_jax.models import mesh as mesh_lib
  from steppo_jax.sampler import hand_over

  policy = mesh_lib.shaped(mesh, start_of(setting, mesh)[1].policy)
  with as_on(mesh.devices.flat[0].platform):
    return hand_over.lower(
      model_of(setting), policy, sampler_mesh(setting, mesh)
    )


def sampler_mesh(setting: Setting, mesh: Any) -> Any:
  """The learner's devices as those of the run's sampler: there are slots."""
  from jax.sharding import Mesh

  from steppo_jax.sampler import split

  parts, devices = setting.sampler_tensor, mesh.devices.flatten()
  if parts == 1:
    return Mesh(devices, ("data",))
  return Mesh(devices.reshape(-1, parts), ("data", split.AXIS))


def batch_of(setting: Setting, config: Any, mesh: Any) -> Any:
  """Shapes of `batch_rows` rows in mini-batches, and of 128 x 20 steps."""
  import jax

  from steppo_jax import batch
  from steppo_jax.learner import state
  from steppo_jax.models import mesh as mesh_lib

  parts, steps = config.num_minibatches, 128 * 20 + 1
  rows, whole = mesh_lib.by_row(mesh, 1), mesh_lib.replicated(mesh)
  microbatches = max(-(-setting.batch_rows // (parts * setting.rows)), 2)
  shape = (parts, microbatches * setting.rows, setting.row_length)
  array = lambda shape, kind, where: jax.ShapeDtypeStruct(
    shape, kind, sharding=where
  )
  kinds = {"reward": "float32", "live": "bool", "last": "bool"}
  kinds |= {"truncated": "bool", "behaviour_logp": "float32"}
  record = lambda kind, shape, where: kind(
    **{
      field.name: array(shape, kinds.get(field.name, "int32"), where)
      for field in dataclasses.fields(kind)
    }
  )
  tokens = record(batch.TokenBatch, shape, rows)
  used, of_steps = (array((n,), "int32", whole) for n in (parts, steps))
  return state.Batch(
    tokens, record(batch.StepTable, (steps,), whole), used,
    prompts=batch.PromptRows(tokens, used, of_steps, of_steps),
  )  # fmt: skip


def lower_sampler(setting: Setting, mesh: Any) -> Any:
  """Prefill of runs of `READ` tokens, or decoding in all slots, as runs do it.

  Axis "data" of the mesh splits the slots, and "tensor" the model.

  Raises:
    ValueError: the mesh has an axis "fsdp", or does not divide the slots.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  from steppo_jax.models import transformer
  from steppo_jax.sampler import cache as cache_lib
  from steppo_jax.sampler import decode, programs, slot_requests, split

  model, slots, context = model_of(setting), setting.rows, setting.row_length
  parts, count = setting.tensor, mesh.shape["data"]
  if mesh.shape["fsdp"] > 1:
    raise ValueError("a sampler has the axes data and tensor, not fsdp")
  if slots % count:
    raise ValueError(f"{slots} slots are no multiple of data={count}")
  # A run without the axis has a mesh without it.
  devices = mesh.devices[:, 0] if parts > 1 else mesh.devices[:, 0, 0]
  mesh = Mesh(devices, ("data", split.AXIS)[: devices.ndim])
  at = lambda spec: NamedSharding(mesh, spec)
  shaped = lambda specs, tree: jax.tree.map(
    lambda spec, part: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at(spec)), part
    ),
    specs, tree,
  )  # fmt: skip
  narrow = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    transformer.abstract_params(model),
  )
  params = jax.eval_shape(
    lambda params: split.fit(model, transformer.by_layer(params), parts), narrow
  )
  specs, slot = split.specs(model, parts), PartitionSpec("data")
  params = shaped(specs, params)
  whole = split.whole_cache(model, parts)
  cache = jax.eval_shape(
    lambda: cache_lib.empty(whole, slots, context, paged=is_paged(setting))
  )
  cache = shaped(cache_lib.specs(parts), cache)
  made = programs.functions(model, seed=0, shared_by=parts)
  run = programs.jitted(made, mesh, specs)
  given = lambda *shape, kind=np.int32, spec=slot: jax.ShapeDtypeStruct(
    shape, kind, sharding=at(spec)
  )
  if setting.program == "prefill":
    rows, _ = _group(setting, mesh)
    read = -(-slots // count // rows) * count, rows
    return run.prefill.lower(
      params, cache, given(*read, READ), given(*read), given(*read),
      given(*read), given(count),
    )  # fmt: skip
  turns = jax.eval_shape(lambda: decode.no_turns(slots, 1024))
  return run.sample.lower(
    cache, shaped(slot, turns), params, given(slots),
    shaped(slot, slot_requests.SlotRequests.none(slots)),
    given(slots, kind=bool), given(count), given(spec=PartitionSpec()),
  )  # fmt: skip


def is_paged(setting: Setting) -> bool:
  """Whether the sampler's attention is the kernel, as on a TPU."""
  from steppo_jax.sampler import cache_attention, split

  part = split.part(model_of(setting), setting.tensor)
  with as_on("tpu"):
    return cache_attention.is_paged(setting.attention, part)


def block_of(setting: Setting) -> int:
  """Positions of the cache that attention reads at once."""
  from steppo_jax.sampler import cache, split

  whole = split.whole_cache(model_of(setting), setting.tensor)
  return cache.block_of(
    whole, setting.rows, setting.row_length, "tpu", is_paged(setting)
  )


def seen(setting: Setting) -> float:
  """Positions that attention reads: for decode all that a slot has.

  For prefill the mean over the two runs of a prompt of 2 `READ` tokens.
  """
  return setting.row_length if setting.program == "decode" else 1.5 * READ


def kernel_ms(setting: Setting, mesh: Any, chip: roofline.Chip) -> float:
  """Least time of the sampler's attention kernel, which cycles leave out.

  Its products at the chip's peak, or keys and values at its bandwidth, for one
  group of runs or one token. It reads all that a slot holds for each block of
  its queries, and multiplies it with the whole block, whatever they see of it.
  """
  from steppo_jax.sampler import cache_attention

  if not is_paged(setting):
    return 0.0
  model, (rows, tokens) = model_of(setting), _group(setting, mesh)
  block = cache_attention.SINGLE_QUERIES if tokens == 1 else tokens
  pairs = rows * block * seen(setting) * model.num_layers
  flops = 4 * pairs * model.num_heads * model.head_dim
  blocks = -(-tokens // cache_attention.QUERIES)
  read = rows * blocks * seen(setting) * roofline.kv_bytes(model)
  devices = setting.tensor / chip.devices
  least = max(flops / chip.flops, read / chip.bandwidth) / devices
  return 1e3 * least


def _group(setting: Setting, mesh: Any) -> tuple[int, int]:
  """Rows of a device that are read at once, and tokens of each."""
  from steppo_jax.sampler import sizes

  each = setting.rows // mesh.shape["data"]
  if setting.program == "decode":
    return each, 1
  return sizes.read_rows(each, READ, "tpu"), READ


def share_of_bound(
  setting: Setting, mesh: Any, ms: float, chip: roofline.Chip
) -> dict[str, Any]:
  """How far a sampler's program is from what the chip could do at best.

  Args:
    setting: Prefill or decode.
    mesh: Its devices.
    ms: Of one group of runs, or of one token, its kernel included.
    chip: Its data sheet.

  Returns:
    For prefill "tokens" of a group and "mxu", the share of the peak that the
    FLOPs of its products have; causal attention counts half of what is seen.
    For decode "over_bound": the time, in those that it takes to read the
    weights and the whole cache once.
  """
  model, (rows, length) = model_of(setting), _group(setting, mesh)
  devices = setting.tensor / chip.devices
  if setting.program == "prefill":
    tokens = rows * length
    flops = tokens * roofline.forward_flops(model, READ, 0.0)
    peak = chip.flops * devices
    return {"tokens": tokens, "mxu": flops / (ms / 1e3) / peak}
  weights = roofline.matmul_weights(model) + roofline.logit_weights(model)
  cache = rows * setting.row_length * roofline.kv_bytes(model)
  bound = (2 * weights + cache) / (chip.bandwidth * devices)
  return {"over_bound": ms / 1e3 / bound}
