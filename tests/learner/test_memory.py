"""What is computed again is chosen by what the compiler says of memory."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import learner_runs
import pytest
import tpu_tools
import worlds

from steppo_jax.learner import learner, memory
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import state as learner_state
from steppo_jax.models import attend, mesh, transformer
from steppo_jax.models import config as model_config

hlo = tpu_tools.load("hlo")

# Deep enough that what layers keep is most of the memory.
MODEL = model_config.ModelConfig(
  vocab_size=64, width=32, num_layers=8, num_heads=2, num_kv_heads=2,
  head_dim=16, mlp_width=64,
)  # fmt: skip


@functools.cache
def gradient(remat):
  """The gradient of a decoder, compiled."""
  model = dataclasses.replace(MODEL, remat=remat)
  tokens = jax.ShapeDtypeStruct((4, 256), jnp.int32)

  def loss(params, tokens, end):
    see = attend.over_rows(
      end, tokens, block=64, implementation="xla", mesh=None
    )
    return transformer.apply(model, params, tokens, tokens, see).sum()

  params = transformer.abstract_params(model)
  return jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile()


@pytest.mark.slow
def test_the_fastest_that_fits_is_taken():
  need = {name: memory.needed(gradient(name)) for name in memory.REMATS}
  assert need["none"] > need["dots"] > need["full"]
  tried = []

  def compiled(remat):
    tried.append(remat)
    return gradient(remat)

  for remat in memory.REMATS:
    tried.clear()
    chosen, program = memory.choose(compiled, need[remat] * 1.1)
    assert chosen == remat
    assert program is gradient(remat)
    # No program is compiled that is not needed.
    assert tried == list(memory.REMATS[: memory.REMATS.index(remat) + 1])
  # Nothing holds less than the last.
  assert memory.choose(compiled, 1)[0] == "full"


def test_a_compiler_that_refuses_is_asked_for_less():
  def compiled(remat):
    if remat == "none":
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20 of 16 GiB")
    if remat == "dots":
      raise jax.errors.JaxRuntimeError("INTERNAL: a fault")
    return gradient(remat)

  with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
    memory.choose(compiled, 2**60)


def learner_with(config, **options):
  return learner.Learner(
    worlds.model(), learner_runs.row("grpo"), config, mesh.make_mesh(1),
    num_updates=4, seed=0, **options,
  )  # fmt: skip


@pytest.mark.slow
def test_an_update_is_compiled_once_for_the_memory_there_is():
  config = dataclasses.replace(learner_runs.CONFIG, remat="auto")
  made = learner_with(config, memory=2**40)
  state = made.init(worlds.policy())
  batch = learner_state.put_batch(learner_runs.packed(), mesh.make_mesh(1))
  for _ in range(2):
    state, _ = made.update(state, None, batch)
  assert (made.remat, made.compiles) == ("none", 1)


def test_options_name_what_is_computed_again():
  config = dataclasses.replace(learner_runs.CONFIG, remat="full")
  assert learner_with(config).remat == "full"
  # A CPU does not say what it has left: the model's own setting stays.
  assert memory.free(mesh.make_mesh(1)) is None
  with pytest.raises(ValueError, match=r"learner\.remat='some'"):
    learner_options.LearnerConfig(remat="some")


def test_a_split_without_need_is_warned_of():
  state = learner_state.LearnerState(
    policy={"layers": {"q": {"kernel": jnp.zeros((2, 64, 64))}}},
    policy_optimizer={}, critic=None, critic_optimizer=None,
    update=jnp.zeros((), jnp.int32),
  )  # fmt: skip
  split = mesh.make_model_mesh(data=1, fsdp=8, tensor=1)
  # 7/8 of 32 KiB more for the copy, 32 KiB of gradients, and the program.
  need = 28_672 + 32_768 + 1000
  with pytest.warns(UserWarning, match=r"mesh\.fsdp=8 splits a state"):
    memory.warn_of_split(split, state, 1000, int(need / 0.92) + 1)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    memory.warn_of_split(split, state, 1000, int(need / 0.92) - 1)
    rows = mesh.make_model_mesh(data=8, fsdp=1, tensor=1)
    memory.warn_of_split(rows, state, 1000, 2**40)


def test_what_is_kept_stays_where_it_was_computed():
  split = mesh.make_model_mesh(data=1, fsdp=8, tensor=1)
  spec = learner.make_spec(
    worlds.model(), learner_runs.row("grpo"), learner_runs.CONFIG, split,
    num_updates=1, seed=0,
  )  # fmt: skip
  # Two microbatches in each mini-batch.
  batch = learner_state.put_batch(learner_runs.packed(multiple=16), split)
  states = lambda rows: jnp.sin(rows.tokens[..., None] * jnp.arange(64.0))

  @jax.jit
  def run(batch):
    kept = spec.keep(batch, states)
    assert kept.shape[:3] == (*batch.rows_used.shape, 2, 8)
    return spec.over_all_rows(batch, lambda _, x: x.sum(-1), kept)

  found = run(batch)
  # Rows that hold nothing are not computed.
  used = jnp.arange(16) < -(-batch.rows_used[:, None] // 8) * 8
  want = jnp.where(used[..., None], states(batch.tokens).sum(-1), 0.0)
  learner_runs.close(found, want)
  program = hlo.Program(run.lower(batch).compile().as_text())
  moved = max(x.bytes for x in program.collectives())
  assert moved < 4 * 64 * batch.tokens.tokens[0].size / 8
