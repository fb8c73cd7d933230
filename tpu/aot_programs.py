"""The programs that `aot_check.py` compiles, lowered from shapes alone.

JAX is imported inside the functions: `aot_check.py` sets the environment first.
"""

import dataclasses
from typing import Any

PROGRAMS = ("learner-full", "learner-lora", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Setting:
  """One program on one topology.

  Attributes:
    topology: As libtpu names it, such as "v5e:4x4".
    model: Preset.
    program: One of `PROGRAMS`.
    data: Chips that hold different rows; 0 for what fsdp and tensor leave.
    fsdp: Chips that hold parts of every parameter.
    tensor: Chips that compute parts of every layer.
    row_length: Tokens of a row of the learner, and of a slot of the sampler.
    rows: Rows whose gradients are computed at once, or slots, in all.
    remat: What the learner computes again.
    layers: Layers in place of the preset's; 0 for the preset's.
    frozen: Type of parameters that are not trained: under adapters the
      policy's, and the reference policy's otherwise. Runs hold float32.
    fits: What is expected.
  """

  topology: str
  model: str
  program: str
  data: int = 0
  fsdp: int = 1
  tensor: int = 1
  row_length: int = 4096
  rows: int = 16
  remat: str = "full"
  layers: int = 0
  frozen: str = "float32"
  fits: bool = True


def model_of(setting: Setting):
  """The preset in bfloat16, as pods run it."""
  from steppo_jax.models import presets

  changes = {"num_layers": setting.layers} if setting.layers else {}
  vocab = None if setting.model in presets.VOCABULARIES else 512
  return dataclasses.replace(
    presets.get(setting.model, vocab),
    compute="bfloat16", remat=setting.remat, **changes,
  )  # fmt: skip


def options_of(setting: Setting, mesh: Any) -> Any:
  """StepPO's options: all parameters and a critic of its own, or adapters."""
  from steppo_jax.learner import options
  from steppo_jax.models import mesh as mesh_lib
  from steppo_jax.models import options as models_options

  adapters = setting.program == "learner-lora"
  return options.LearnerConfig(
    microbatch_rows=setting.rows,
    attention_block=512,
    # 256 tokens a chip are projected to the vocabulary at once.
    logprob_chunk=256 * mesh_lib.row_parts(mesh),
    critic_trunk="policy" if adapters else "own",
    lora=models_options.LoraConfig(rank=32 if adapters else 0),
  )


def lower_learner(setting: Setting, mesh: Any) -> Any:
  """StepPO's update.

  Trained parameters are float32, as Adam needs them. Under adapters the
  critic's head reads the policy's layers.
  """
  import jax

  from steppo_jax.algorithms import table as algorithms_table
  from steppo_jax.learner import learner
  from steppo_jax.models import mesh as mesh_lib
  from steppo_jax.models import transformer

  adapters = setting.program == "learner-lora"
  model, config = model_of(setting), options_of(setting, mesh)
  made = learner.Learner(
    model, algorithms_table.get("steppo"), config, mesh, num_updates=100, seed=0
  )
  policy = transformer.abstract_params(model)
  frozen = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, setting.frozen), policy
  )
  # StepPO has a KL to where it started: the adapters' tree without adapters.
  reference = None if adapters else mesh_lib.shaped(mesh, frozen)
  return made.lower(
    frozen if adapters else policy,
    reference,
    batch_of(setting, config, mesh),
  )


def batch_of(setting: Setting, config: Any, mesh: Any) -> Any:
  """Shapes of 128 episodes of 20 steps, as many rows as two microbatches."""
  import jax

  from steppo_jax import batch
  from steppo_jax.learner import state
  from steppo_jax.models import mesh as mesh_lib

  parts, steps = config.num_minibatches, 128 * 20 + 1
  rows, whole = mesh_lib.by_row(mesh, 1), mesh_lib.replicated(mesh)
  shape = (parts, 2 * setting.rows, setting.row_length)
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
  return state.Batch(
    record(batch.TokenBatch, shape, rows),
    record(batch.StepTable, (steps,), whole),
    array((parts,), "int32", whole),
  )


def lower_sampler(setting: Setting, mesh: Any) -> Any:
  """Prefill of 512 tokens in an eighth of the slots, or decoding in all."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  from steppo_jax.models import mesh as mesh_lib
  from steppo_jax.models import transformer
  from steppo_jax.sampler import decode, programs, slot_requests

  model, slots, context = model_of(setting), setting.rows, setting.row_length
  rows = mesh_lib.row_axes(mesh)
  at = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  shaped = lambda tree, where: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
  )
  params = jax.eval_shape(
    transformer.by_layer,
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
      transformer.abstract_params(model),
    ),
  )
  params = mesh_lib.shaped(mesh, params)
  cache = jax.eval_shape(lambda: decode.empty_cache(model, slots, context))
  before_heads = () if decode.by_head() else (None,)  # positions
  heads = at(
    None, rows, *before_heads, mesh_lib.head_axis(mesh, model.num_kv_heads)
  )
  cache = decode.Cache(
    shaped(cache.k, heads), shaped(cache.v, heads), shaped(cache.hidden,
                                                           at(rows))
  )  # fmt: skip
  run = programs.jitted(programs.functions(model, seed=0), None)
  whole = lambda shape, kind=np.int32: shaped(np.zeros(shape, kind), at())
  if setting.program == "prefill":
    read = (1, max(1, slots // 8))
    return run.prefill.lower(
      params, cache, whole((*read, 512)), whole(read), whole(read), whole(read),
      whole(1),
    )  # fmt: skip
  turns = jax.eval_shape(lambda: decode.no_turns(slots, 1024))
  return run.sample.lower(
    cache, shaped(turns, at(rows)), params, whole(slots),
    shaped(slot_requests.SlotRequests.none(slots), at()), whole(slots, bool),
    whole(1), whole(()),
  )  # fmt: skip
