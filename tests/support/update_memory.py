"""Memory of a compiled update by size of the vocabulary; nothing runs."""

import dataclasses

import jax
import jax.numpy as jnp

from steppo_jax import batch
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import learner, update
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh, transformer
from steppo_jax.models import options as models_options

# 8,192 tokens in 4 rows of one mini-batch, of up to 64 steps.
ROWS, WIDTH, STEPS = 4, 2048, 64
FLAGS = ("live", "last", "truncated", "success")


def peak(model, *, rank=0, **options) -> int:
  """Bytes that one update needs at once, its arguments and results included.

  Args:
    model: Sizes of the decoder.
    rank: Of the adapters, 0 trains everything.
    options: Of the learner.
  """
  config = learner_options.LearnerConfig(
    num_minibatches=1, actor_epochs=1, microbatch_rows=1,
    lora=models_options.LoraConfig(rank=rank), **options,
  )  # fmt: skip
  algorithm = dataclasses.replace(algorithms_table.get("grpo"), kl_coef=0.0)
  parts = learner.make_spec(
    model, algorithm, config, mesh.make_mesh(1), num_updates=4, seed=0
  )
  policy = transformer.abstract_params(model)
  state = jax.eval_shape(lambda params: learner.init(parts, params), policy)
  array = lambda kind, *shape: jax.ShapeDtypeStruct(shape, kind)
  fields = lambda record: [field.name for field in dataclasses.fields(record)]
  kind = {"behaviour_logp": jnp.float32, "reward": jnp.float32}
  kind |= dict.fromkeys(FLAGS, jnp.bool_)
  tokens = {
    name: array(kind.get(name, jnp.int32), 1, ROWS, WIDTH)
    for name in fields(batch.TokenBatch)
  }
  table = {
    name: array(kind.get(name, jnp.int32), STEPS)
    for name in fields(batch.StepTable)
  }
  given = learner_state.Batch(
    batch.TokenBatch(**tokens), batch.StepTable(**table), array(jnp.int32, 1)
  )
  run = lambda state, given: update.update(parts, state, None, given)
  lowered = jax.jit(run, donate_argnums=0).lower(state, given)
  # Buffers are assigned before the code is made: it need not be fast.
  compiled = lowered.compile({"xla_llvm_disable_expensive_passes": True})
  found = compiled.memory_analysis()
  return (
    found.temp_size_in_bytes
    + found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
  )
