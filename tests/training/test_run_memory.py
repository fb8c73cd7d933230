"""A run holds what its learner and its sampler need, and nothing twice."""

import dataclasses
import functools
import gc

import jax
import pytest
import small_runs
import vocabularies

from steppo_jax.learner import learner, memory
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models import transformer
from steppo_jax.models.formats import hub
from steppo_jax.models.options import LoraConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.prompts.options import PromptConfig
from steppo_jax.sampler.options import SamplerConfig
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
  hub.save(made, MODEL, transformer.init(MODEL, jax.random.key(0)))
  vocabularies.write_folder(
    made, vocabularies.byte_level(), template=vocabularies.CHATML
  )
  return made


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


class Live:
  """Bytes of arrays on devices that were not there before."""

  def __init__(self):
    gc.collect()
    self._before = {id(x): x for x in jax.live_arrays()}

  def bytes(self):
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays() if id(x) not in self._before)


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
  live = Live()
  made = run.Learning(asked)
  state = made.start()
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
  live = Live()

  def on_update(done, _):
    device = made[0].players.engine._device
    sampler = memory.whole((device.params, device._cache, device.turns))
    found[done] = live.bytes(), state_of(made[0]) + sampler

  opened = run_folder.open_folder(asked, "test", "test")
  train.train(asked, opened, on_update=on_update, on_episode=lambda _: None)
  for held, want in (found[0], found[1]):
    assert want <= held < want + POLICY // 8


@pytest.mark.slow
def test_an_evaluation_keeps_the_samplers_weights_alone(folder, tmp_path):
  asked = options(folder, tmp_path)
  live, found = Live(), []
  evaluate.evaluate(asked, on_finish=lambda _: found.append(live.bytes()))
  cache = 768 * 2 * 2 * 16 * 4
  assert POLICY <= max(found) < POLICY + 2 * cache + POLICY // 8
