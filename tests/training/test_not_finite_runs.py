"""A run that is no longer finite says so, and keeps nothing of that update."""

import dataclasses

import jax
import numpy as np
import pytest
import small_runs
import worlds
from marks import some

from steppo_jax.datasets import options as datasets_options
from steppo_jax.learner import options as learner_options
from steppo_jax.learner import state as learner_state
from steppo_jax.pretrained import policy
from steppo_jax.storage import checkpoint, metrics
from steppo_jax.training import config, imitation


def arrays_of(folder):
  """Every array of the newest checkpoint, and its update."""
  with checkpoint.Checkpoints(folder / "checkpoints", 3) as store:
    update = store.latest()
    _, described = store.facts(update)
    like = {
      name: jax.ShapeDtypeStruct(
        [int(n) for n in text.partition("[")[2].rstrip("]").split(",") if n],
        text.partition("[")[0],
      )
      for name, text in described.items()
    }
    return store.restore(update, like)[0], update


@pytest.mark.slow
def test_a_critic_that_diverges_stops_the_run_before_it_is_saved(tmp_path):
  options = small_runs.small_config(tmp_path)
  # Weights of 1e16 are finite; what they compute in the next update is not.
  learner = dataclasses.replace(options.learner, critic_learning_rate=3e16)
  options = dataclasses.replace(options, learner=learner)
  folder = tmp_path / "run"
  # The second time it goes on from the checkpoint, and ends where it did.
  for _ in range(2):
    with pytest.raises(RuntimeError) as raised:
      small_runs.run(options)
    said = str(raised.value)
    assert "update 1: not finite: critic/" in said
    assert "critic/grad_norm" in said
    assert "lower learner.critic_learning_rate" in said
    lines = metrics.read_jsonl(folder / "metrics.jsonl")
    assert [line["update"] for line in lines] == [0, 1]
    assert not (folder / "policy.safetensors").exists()
    found, update = arrays_of(folder)
    assert update == 1
    assert any(name.startswith("critic.") for name in found)
    for name, value in found.items():
      assert np.isfinite(np.asarray(value, np.float64)).all(), name


def write_start(path, factor):
  """A starting policy of which one number is multiplied."""
  made = jax.tree.map(np.array, worlds.policy())
  made["final_norm"]["scale"][0] *= factor
  policy.save_policy(path, worlds.model(), made, worlds.tokenizer(), {})


@pytest.mark.slow
def test_weights_that_are_not_numbers_are_told_by_the_first_step(tmp_path):
  options = small_runs.small_config(tmp_path)
  write_start(options.weights, np.nan)
  with pytest.raises(
    ValueError, match=r"update 0: step 0 of trajectory .*: behaviour_logp of"
  ):
    small_runs.run(options)
  assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
  ("start", "message"),
  some(
    (np.nan, "step 1: .*loss nan, parameters embed/embedding"),
    # The gradient overflows, or the norm of parameters of 1e20 does.
    slow=[(1.0, r"step [12]: .*parameters finite")],
  ),
)
def test_supervised_steps_that_diverge_save_nothing(tmp_path, start, message):
  small = small_runs.small_config(tmp_path)
  write_start(small.weights, start)
  run = config.SupervisedRun(
    weights=small.weights,
    env=small.env,
    rollout=small.rollout,
    sampler=small.sampler,
    packing=small.packing,
    evaluation=dataclasses.replace(small.evaluation, every=9, episodes=2),
    data_dir=str(tmp_path / "data"),
    demonstrations=datasets_options.Demonstrations(
      split="train", sizes=("tiny",), num_episodes=4, seed=0
    ),
    training=learner_options.SupervisedConfig(
      learning_rate=1e20, warmup_steps=0, num_steps=3, rows_per_step=1
    ),
  )
  folder = tmp_path / "run"
  folder.mkdir()
  with pytest.raises(RuntimeError, match=message):
    imitation.train(run, folder, on_update=lambda *_: None)
  assert not (folder / "policy.safetensors").exists()
  # Before the first step: how many rows there are, and how many were cut.
  (line,) = metrics.read_jsonl(folder / "metrics.jsonl")
  assert line["supervised/rows"] >= 1
  assert line["supervised/cut"] >= 0


def test_what_caused_it_stands_first():
  pairs = {
    "policy/grad_norm": (np.nan, 1.0),
    "critic/value": (np.inf, 4.0),
    "critic/param_norm": (np.nan, 1.0),
    "batch/reward": (3.0, 4.0),
    "teacher/gap": (0.0, 0.0),
  }
  with pytest.raises(RuntimeError) as raised:
    learner_state.check_finite(pairs, 7)
  assert (
    "update 7: not finite: critic/param_norm, critic/value, policy/grad_norm;"
    in str(raised.value)
  )
  learner_state.check_finite({"batch/reward": (3.0, 0.0)}, 7)
