"""A run holds what its learner and its sampler need, and nothing twice."""

import dataclasses
import functools
import threading

import jax
import live_arrays
import numpy as np
import pytest
import released_models
import small_runs
import tpu_tools

from steppo_jax import trees
from steppo_jax.learner import learner, memory
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models import lora, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.options import LoraConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.pretrained import policy
from steppo_jax.prompts.options import PromptConfig
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.storage import events
from steppo_jax.storage import folder as run_folder
from steppo_jax.tokenizer import loading
from steppo_jax.training import config, evaluate, run, train

# Most of it are matrices; slots have few positions.
MODEL = transformer.ModelConfig(
  vocab_size=512, width=64, num_layers=2, num_heads=2, num_kv_heads=1,
  head_dim=16, mlp_width=256,
)  # fmt: skip
POLICY = memory.whole(transformer.abstract_params(MODEL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A released model, which is read to devices: not a file of our own."""
  made = tmp_path_factory.mktemp("released") / "model"
  return released_models.write(made, MODEL)


def options(folder, tmp_path, rank=0, kl_coef=0.0):
  small = small_runs.small_config(tmp_path)
  return dataclasses.replace(
    small,
    weights=str(folder),
    tokenizer=loading.OWN_TOKENIZER,
    num_updates=2,
    checkpoint_every=2,  # Orbax has copies while it writes.
    tasks_per_update=2,
    prompt=PromptConfig(layout="chat"),
    algorithm=dataclasses.replace(small.algorithm, kl_coef=kl_coef),
    rollout=dataclasses.replace(
      small.rollout, max_steps=1, max_tokens=768, max_new_tokens=4
    ),
    sampler=SamplerConfig(num_slots=1, prefill_lengths=(512,)),
    packing=PackingConfig(row_length=768),
    learner=LearnerConfig(
      num_minibatches=1, microbatch_rows=2, critic_warmup=0,
      critic_trunk="policy", lora=LoraConfig(rank=rank),
    ),
    evaluation=config.EvalConfig(every=1, episodes=1),
  )  # fmt: skip


def state_of(made):
  """Bytes of the learner's state."""
  shapes = transformer.abstract_params(MODEL)
  init = functools.partial(learner.init, made.learner._spec)
  return memory.whole(jax.eval_shape(init, shapes))


@pytest.mark.parametrize(
  ("rank", "kl_coef", "copies"),
  # Adapters off are the reference; only a policy trained whole needs another.
  [(0, 0.0, 0), (0, 0.1, 1), (2, 0.1, 0)],
)
def test_the_start_is_kept_where_an_update_reads_it(
  folder, tmp_path, rank, kl_coef, copies
):
  asked = options(folder, tmp_path, rank, kl_coef)
  live = live_arrays.Live()
  made = run.Learning(asked)
  policy = made.policy
  state = made.start()
  # Given up where nothing else reads it, so that it is never there twice.
  assert bool(policy) == bool(copies)
  want = state_of(made) + copies * POLICY
  assert want <= live.bytes() < want + POLICY // 8
  assert int(state.update) == 0
  with pytest.raises(RuntimeError, match="start was called before"):
    made.start()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_after_an_update_state_and_sampler_are_all_there_is(
  folder, tmp_path, monkeypatch, rank
):
  asked = options(folder, tmp_path, rank)
  made, found = [], {}
  kept = lambda *args: made.append(run.Run(*args)) or made[-1]
  monkeypatch.setattr(train, "Run", kept)
  live = live_arrays.Live()

  def on_update(done, _):
    held = memory.whole(made[0].held())
    found[done] = live.bytes(), state_of(made[0]) + held

  def save(path, *args):
    found["end"] = live.bytes(), POLICY
    saved(path, *args)

  saved = policy.save_policy
  monkeypatch.setattr(policy, "save_policy", save)
  opened = run_folder.open_folder(asked, "test", "test")
  train.train(asked, opened, on_update=on_update, on_episode=lambda _: None)
  # In the end the policy alone: not even its merged form is on the devices.
  for held, want in (found[0], found[1], found["end"]):
    assert want <= held < want + POLICY // 8


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_what_a_check_counts_is_what_a_run_holds(
  folder, tmp_path, monkeypatch, staleness
):
  whole_run = tpu_tools.load("whole_run")
  programs = whole_run.aot_programs
  asked = options(folder, tmp_path, kl_coef=0.1)
  asked = dataclasses.replace(
    asked,
    num_devices=None,
    rollout=dataclasses.replace(asked.rollout, staleness=staleness),
    learner=dataclasses.replace(
      asked.learner, critic_trunk="own", microbatch_rows=8
    ),
  )
  live = live_arrays.Live()
  made = run.Run(asked, tmp_path, events.Log(None), lambda _: None)
  state = made.start()
  made.hand_over(state.policy, 0)
  if staleness:
    # As `evaluate` does before it plays, and as a learner finds the rollouts
    # while responses are under way.
    made._judges.engine.set_params(state.policy, 0)
    made.rollouts._thread = threading.current_thread()
    made.hand_over(state.policy, 1)
  monkeypatch.setattr(programs, "model_of", lambda _: MODEL)
  setting = programs.Setting(
    "cpu:8", "own", "learner-full", rows=8, row_length=768, staleness=staleness
  )
  handed = whole_run.hand_over(setting, made.mesh)
  found = whole_run.held(setting, made.mesh, 0, handed, 2**30)
  engines = {made.players.engine, made._judges.engine}
  caches = [memory.whole(engine.held["cache"]) for engine in engines]
  assert len(caches) == 1 + bool(staleness)
  # Those of a TPU are in bfloat16, which has half of it.
  assert sum(caches) == pytest.approx(2 * found.slot, rel=0.01)
  held = sum(found.parts.values()) + sum(caches)
  assert live.bytes() == pytest.approx(held, abs=POLICY // 64)
  if staleness == 2:
    # The next weights can come while some wait, for a moment.
    prepared = made.players.engine.prepare(state.policy)
    more = memory.whole(prepared)
    assert found.hand_over == handed.beside + more
    assert live.bytes() == pytest.approx(held + more, abs=POLICY // 64)
  else:
    assert found.hand_over == handed.beside
  made.rollouts._thread = None
  made.close()


@pytest.mark.slow
def test_an_evaluation_keeps_the_samplers_weights_alone(folder, tmp_path):
  asked = options(folder, tmp_path)
  live, found = live_arrays.Live(), []
  evaluate.evaluate(asked, on_finish=lambda _: found.append(live.bytes()))
  cache = 768 * 2 * 2 * 16 * 4
  assert POLICY <= max(found) < POLICY + 2 * cache + POLICY // 8


@pytest.mark.parametrize("fsdp", [1, 8])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_policy_is_fetched_layer_by_layer(fsdp, rank, monkeypatch):
  params = transformer.init(MODEL, jax.random.key(0))
  params = lora.add(params, LoraConfig(rank=rank), jax.random.key(1))
  # Adapters change nothing before they are trained.
  params = jax.tree.map(lambda x: x + 0.01, params)
  mesh = mesh_lib.make_model_mesh(data=8 // fsdp, fsdp=fsdp, tensor=1)
  params = mesh_lib.put(params, mesh_lib.placements(mesh, params))
  want = trees.flatten(mesh_lib.to_host(lora.merge(params)))
  # As if other processes had some of the devices.
  monkeypatch.setattr(policy, "_is_near", lambda _: False)
  live, most = live_arrays.Live(), []
  to_host = mesh_lib.to_host

  def watched(x):
    most.append(live.now())
    return to_host(x)

  monkeypatch.setattr(mesh_lib, "to_host", watched)
  whole, adapters = policy.fetch(params)
  found = trees.flatten(whole)
  assert found.keys() == want.keys()
  for name, value in want.items():
    assert isinstance(found[name], np.ndarray)
    np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
  assert len(trees.flatten(adapters)) == (0 if not rank else 3 * 7)
  # A layer's largest matrix, whole, and its adapters.
  assert 0 < max(most) <= 64 * 256 * 4
  assert policy.fetch(params, keep=False) == ({}, {})
