"""Runs end to end: errors counted, bad input refused."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import worlds
from marks import some
from small_runs import WARM, run, small_config

from steppo_jax.algorithms.options import AlgorithmConfig
from steppo_jax.learner import optimizers
from steppo_jax.learner.learner import Learner
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models import mesh, transformer
from steppo_jax.models.formats import weights
from steppo_jax.packing.options import PackingConfig
from steppo_jax.pretrained import policy
from steppo_jax.prompts.options import PromptConfig
from steppo_jax.storage import checkpoint, metrics
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import ahead, config, episodes, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  options = small_config(tmp_path_factory.mktemp("whole"))
  return options, run(options)


def test_a_run_writes_metrics_policy_and_facts(finished):
  options, folder = finished
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  assert [line["update"] for line in lines] == [0, 1, 2, 3]
  assert ["eval/success" in line for line in lines] == [True, False, True, True]
  last = lines[-1]
  for name in (
    "rollout/success", "rollout/invalid_share", "rollout/truncated_share",
    "policy/entropy", "policy/clip_fraction", "policy/approx_kl",
    "policy/sampler_gap", "policy/ratio_q99", "critic/unexplained_variance",
    "tokens_per_s", "rollout/episodes_per_s", "batch/unique_over_row_tokens",
    "eval/success/pick_and_place_simple",
  ):  # fmt: skip
    assert name in last, name
  assert last["policy/sampler_gap"] < 1e-4
  assert lines[1]["compiles/sampler"] == last["compiles/sampler"]
  params, facts = weights.load_params(folder / "policy.safetensors")
  assert facts["tokenizer"] == worlds.tokenizer().digest
  before, _ = weights.load_params(options.weights)
  assert not np.array_equal(
    params["final_norm"]["scale"], before["final_norm"]["scale"]
  )
  assert {"command", "commit", "hardware", "date"} <= set(
    json.loads((folder / "run.json").read_text())
  )
  assert list((folder / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_panel_can_be_sampled_as_training_samples(tmp_path):
  options = small_config(tmp_path, weights=str(WARM))
  found = []
  for temperature in (0.0, 1.0):
    panel = config.EvalConfig(every=1, episodes=8, temperature=temperature)
    folder = run(
      dataclasses.replace(
        options, evaluation=panel, run_dir=str(tmp_path / str(temperature))
      ),
      # The critic's warm-up, which leaves the policy as it is.
      stop_after=1,
    )
    start, end = metrics.read_jsonl(folder / "metrics.jsonl")
    for name in ("eval/reward", "eval/response_tokens"):
      # An episode has the same keys each time.
      assert start[name] == end[name]
    found.append((start["eval/reward"], start["eval/response_tokens"]))
  assert found[0] != found[1]
  with pytest.raises(ValueError, match=r"temperature=-0\.5 must be at least"):
    config.EvalConfig(temperature=-0.5)


def test_a_folder_of_another_run_is_refused(finished):
  options, _ = finished
  changed = dataclasses.replace(
    options, learner=dataclasses.replace(options.learner, learning_rate=1.0)
  )
  with pytest.raises(ValueError, match=r"learner\.learning_rate"):
    run_folder.open_folder(changed, "test", "test")


def test_a_checkpoint_of_another_optimizer_is_refused_by_name(
  finished, tmp_path
):
  options, folder = finished
  learner = dataclasses.replace(options.learner, optimizer="adafactor")
  changed = dataclasses.replace(options, learner=learner)
  with pytest.raises(ValueError, match=r"learner\.optimizer=adamw there, adaf"):
    run(changed)
  # From Python without `open_folder`, and where a folder lost its options.
  copied = shutil.copytree(folder, tmp_path / "copy")
  with pytest.raises(ValueError, match=r"with learner\.optimizer=adamw"):
    train.train(
      changed, copied, on_update=lambda *_: None, on_episode=lambda _: None
    )


def scale(policy):
  return np.asarray(policy["final_norm"]["scale"])


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_schedule_free_evaluates_and_keeps_its_average(
  tmp_path, monkeypatch, staleness
):
  handed = []
  for kind in (episodes.Rollouts, ahead.Ahead):

    def set_policy(self, policy, version, before=kind.set_policy):
      handed.append(scale(policy).copy())
      before(self, policy, version)

    monkeypatch.setattr(kind, "set_policy", set_policy)
  options = small_config(tmp_path)
  rollout = dataclasses.replace(options.rollout, staleness=staleness)
  options = dataclasses.replace(options, rollout=rollout)
  learner = dataclasses.replace(
    options.learner, optimizer="schedule_free", final_learning_rate=1.0,
    critic_warmup=0, warmup_steps=0, learning_rate=0.02,
  )  # fmt: skip
  options = dataclasses.replace(options, learner=learner, num_updates=2)
  folder = run(options)
  params, _ = weights.load_params(folder / "policy.safetensors")
  made = Learner(
    worlds.model(), options.algorithm.row(), learner, mesh.make_mesh(1),
    num_updates=2, seed=0,
  )  # fmt: skip
  with checkpoint.Checkpoints(folder / "checkpoints", 1) as store:
    state, _ = store.restore(2, made.init(worlds.policy()))
  kept = optimizers.evaluated(state.policy_optimizer, state.policy)
  jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(kept))
  assert not np.array_equal(scale(kept), scale(state.policy))
  # Episodes are played with the parameters that gradients are taken at.
  np.testing.assert_array_equal(handed[-1], scale(state.policy))
  averaged = [np.array_equal(x, scale(kept)) for x in handed]
  assert sum(averaged) == (0 if staleness else 1)


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.txt").write_text("precious")
  with pytest.raises(ValueError, match="something else"):
    run(small_config(tmp_path))
  assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


def test_weights_of_another_tokenizer_are_refused(tmp_path):
  options = small_config(tmp_path)
  params, facts = weights.load_params(options.weights)
  weights.save_params(options.weights, params, facts | {"tokenizer": "0" * 64})
  with pytest.raises(ValueError, match="tokenizer"):
    run(options)


def test_weights_cut_short_are_refused(tmp_path):
  options = small_config(tmp_path)
  path = pathlib.Path(options.weights)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match="start"):
    run(options)


def test_rows_that_devices_cannot_share_are_told_before_a_model_is_read(
  tmp_path,
):
  made = small_config(tmp_path, num_devices=2, weights="missing.safetensors")
  made = dataclasses.replace(
    made, learner=dataclasses.replace(made.learner, microbatch_rows=3)
  )
  with pytest.raises(
    ValueError, match="microbatch_rows=3 is not a multiple of"
  ):
    run(made)


def test_weights_without_facts_are_refused(tmp_path):
  options = small_config(tmp_path)
  params, _ = weights.load_params(options.weights)
  weights.save_params(options.weights, params, {})
  with pytest.raises(ValueError, match="does not name its model"):
    run(options)


def test_episodes_that_break_are_counted_and_the_run_goes_on(
  tmp_path, monkeypatch
):
  from steppo_jax.envs.household import env as household

  step = household.HouseholdEnv.step
  calls = [0]

  def breaks_sometimes(self, text):
    calls[0] += 1
    if calls[0] % 23 == 0:
      raise TimeoutError("no answer")
    return step(self, text)

  monkeypatch.setattr(household.HouseholdEnv, "step", breaks_sometimes)
  folder = run(small_config(tmp_path), stop_after=2)
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  shares = [line.get("rollout/error_share", 0) for line in lines[1:]]
  counts = [line.get("rollout/error/TimeoutError", 0) for line in lines[1:]]
  assert sum(counts) > 0
  assert shares == [count / 6 for count in counts]


@pytest.mark.parametrize(
  ("whole", "message"),
  [
    (0, r"evaluation after update 0: all 8 episodes failed.*gone"),
    (8, r"all 6 episodes failed.*gone"),
  ],
)
def test_an_update_in_which_everything_breaks_stops_the_run(
  tmp_path, monkeypatch, whole, message
):
  from steppo_jax.envs.household import env as household

  begun = []
  reset, step = household.HouseholdEnv.reset, household.HouseholdEnv.step

  def counted(self, task, seed):
    begun.append(task)
    return reset(self, task, seed)

  def broken(self, text):
    if len(begun) > whole:
      raise OSError("gone")
    return step(self, text)

  monkeypatch.setattr(household.HouseholdEnv, "reset", counted)
  monkeypatch.setattr(household.HouseholdEnv, "step", broken)
  with pytest.raises(RuntimeError, match=message):
    run(small_config(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "layout"),
  some(("gigpo", "packed"), slow=[("gagpo", "tree")]),
)
def test_a_method_of_groups_trains_on_small_games(name, layout, tmp_path):
  algorithm = AlgorithmConfig(name)
  assert algorithm.row().critic is None
  options = small_config(
    tmp_path, algorithm=algorithm, num_updates=1, tasks_per_update=2,
    group_size=3, packing=PackingConfig(layout, worlds.CONTEXT),
  )  # fmt: skip
  lines = metrics.read_jsonl(run(options) / "metrics.jsonl")
  assert np.isfinite(lines[1]["policy/policy_loss"])
  assert lines[1]["policy/stepped"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "history", "packed_as"),
  some(("official", None, "packed"), slow=[("prefix_friendly", 1, "tree")]),
)
def test_prompts_that_are_written_anew_train_too(
  layout, history, packed_as, tmp_path
):
  options = small_config(
    tmp_path, num_updates=1, tasks_per_update=3,
    prompt=PromptConfig(layout, history),
    rollout=dataclasses.replace(worlds.ROLLOUT, max_tokens=512),
    packing=PackingConfig(packed_as, 512),
    learner=LearnerConfig(num_minibatches=1, critic_warmup=0, critic_epochs=1),
  )  # fmt: skip
  lines = metrics.read_jsonl(run(options) / "metrics.jsonl")
  assert lines[1]["policy/stepped"] == 1
  assert lines[1]["compiles/learner"] <= 1
  assert 0 < lines[1]["batch/unique_over_row_tokens"] <= 1
  assert lines[1]["policy/sampler_gap"] < 1e-5


@pytest.mark.slow
def test_a_teacher_is_read_from_its_file(tmp_path):
  options = small_config(tmp_path, num_updates=1, tasks_per_update=2,
                         group_size=3)  # fmt: skip
  serl = config.AlgorithmConfig(name="serl", teacher=options.weights)
  found = run(dataclasses.replace(options, algorithm=serl))
  assert np.isfinite(
    metrics.read_jsonl(found / "metrics.jsonl")[1]["policy/policy_loss"]
  )
  with pytest.raises(ValueError, match=r"needs teacher.*algorithm\.teacher"):
    run(
      small_config(
        tmp_path / "none",
        group_size=3,
        algorithm=config.AlgorithmConfig(name="serl"),
      )
    )
  sizes = dataclasses.replace(worlds.model(), width=16)
  params = jax.device_get(transformer.init(sizes, jax.random.key(0)))
  other = tmp_path / "other.safetensors"
  policy.save_policy(other, sizes, params, worlds.tokenizer(), {})
  serl = dataclasses.replace(serl, teacher=str(other))
  with pytest.raises(ValueError, match="must have the same sizes"):
    run(small_config(tmp_path / "size", group_size=3, algorithm=serl))


def test_an_algorithm_whose_needs_are_not_met_is_refused_before_compiling(
  tmp_path,
):
  options = small_config(
    tmp_path, algorithm=config.AlgorithmConfig(name="grpo", kl_coef=0.0)
  )
  with pytest.raises(ValueError, match="group"):
    run(options)
