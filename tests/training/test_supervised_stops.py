"""Supervised runs that are killed or stopped go on bit for bit."""

import dataclasses
import os
import signal

import jax.numpy as jnp
import pytest
import small_runs

from steppo_jax.datasets import options as datasets_options
from steppo_jax.learner import options as learner_options
from steppo_jax.models.options import LoraConfig
from steppo_jax.processes import signals
from steppo_jax.storage import checkpoint, metrics
from steppo_jax.training import config, evaluate, imitation


class Killed(Exception):
  pass


@pytest.fixture(scope="module")
def options(tmp_path_factory):
  small = small_runs.small_config(tmp_path_factory.mktemp("start"))
  return config.SupervisedRun(
    weights=small.weights,
    env=small.env,
    rollout=dataclasses.replace(small.rollout, max_steps=2),
    sampler=small.sampler,
    packing=small.packing,
    evaluation=dataclasses.replace(small.evaluation, every=3, episodes=2),
    data_dir=str(tmp_path_factory.mktemp("data")),
    demonstrations=datasets_options.Demonstrations(
      split="train", sizes=("tiny",), num_episodes=6, seed=0
    ),
    training=learner_options.SupervisedConfig(
      learning_rate=1e-3, warmup_steps=0, num_steps=5, rows_per_step=1
    ),
  )


def train(options, folder, on_update=lambda *_: None, **given):
  folder.mkdir(exist_ok=True)
  imitation.train(options, folder, on_update=on_update, **given)
  return folder


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
  return train(options, tmp_path_factory.mktemp("whole") / "run")


def told(folder):
  """What was written, but for the time."""
  lines = metrics.read_jsonl(folder / "metrics.jsonl")
  clock = ("minutes", "eval/seconds")
  return [{k: v for k, v in m.items() if k not in clock} for m in lines]


def newest(folder):
  with checkpoint.Checkpoints(folder / "checkpoints", 1) as store:
    return store.latest()


def ends_as(folder, whole):
  assert small_runs.bits(folder) == small_runs.bits(whole)
  assert told(folder) == told(whole)
  assert [m["update"] for m in told(folder)] == [0, 3, 5]


def test_a_killed_run_goes_on_from_the_last_evaluation(
  options, whole, tmp_path
):
  def on_update(done, _):
    if done == 4:
      raise Killed

  with pytest.raises(Killed):
    train(options, tmp_path / "run", on_update)
  assert newest(tmp_path / "run") == 3
  ends_as(train(options, tmp_path / "run"), whole)
  # What has ended is not trained again.
  steps = []
  train(options, tmp_path / "run", lambda done, _: steps.append(done))
  assert steps == []
  ends_as(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("last", [2, 4])
def test_a_signal_keeps_the_step_that_was_done(options, whole, tmp_path, last):
  def on_update(done, _):
    if done == last:
      os.kill(os.getpid(), signal.SIGTERM)

  with signals.Handler() as handler, pytest.raises(signals.Stopped):
    train(options, tmp_path / "run", on_update, handler=handler)
  assert newest(tmp_path / "run") == last
  ends_as(train(options, tmp_path / "run"), whole)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_lets_it_be_played_again(
  options, whole, tmp_path, monkeypatch
):
  play, played = evaluate.Evaluator.__call__, []

  def stopped(self, **given):
    played.append(None)
    if len(played) == 2:
      raise signals.Stopped("SIGTERM")
    return play(self, **given)

  monkeypatch.setattr(evaluate.Evaluator, "__call__", stopped)
  with pytest.raises(signals.Stopped):
    train(options, tmp_path / "run")
  assert newest(tmp_path / "run") == 3
  assert [m["update"] for m in told(tmp_path / "run")] == [0]
  ends_as(train(options, tmp_path / "run"), whole)


def test_of_a_damaged_checkpoint_nothing_is_taken_over(tmp_path):
  """Of two, as a kill may leave them: the older one and its own step."""
  with checkpoint.Checkpoints(tmp_path, 2) as store:
    for steps in (5, 9):
      made = {"kernel": jnp.full(3, float(steps))}
      imitation._Reached(made, made, steps, told=3).save(store)
  files = (p for p in (tmp_path / "9" / "arrays").rglob("*") if p.is_file())
  data = max(files, key=lambda p: p.stat().st_size)
  damaged = bytearray(data.read_bytes())
  damaged[len(damaged) // 2] ^= 255
  data.write_bytes(damaged)
  made = {"kernel": jnp.zeros(3)}
  reached = imitation._Reached(made, made)
  with checkpoint.Checkpoints(tmp_path, 2) as store:
    reached.restore(store)
  assert reached.params["kernel"][0] == reached.steps == 5


@pytest.mark.slow
def test_adapters_alone_are_kept_between(options, tmp_path):
  lora = dataclasses.replace(options.training, lora=LoraConfig(rank=2))
  adapted = dataclasses.replace(options, training=lora)
  whole = train(adapted, tmp_path / "whole")

  def on_update(done, _):
    if done == 4:
      raise Killed

  with pytest.raises(Killed):
    train(adapted, tmp_path / "run", on_update)
  ends_as(train(adapted, tmp_path / "run"), whole)


@pytest.mark.slow
def test_time_that_was_spent_counts(options, tmp_path, monkeypatch):
  """With `minutes` a run that goes on has what is left of them."""
  monkeypatch.setattr(imitation, "_SAVE_S", 0.0)

  def on_update(done, _):
    if done == 2:
      raise Killed

  timed = dataclasses.replace(options, minutes=60.0)
  with pytest.raises(Killed):
    train(timed, tmp_path / "run", on_update)
  assert newest(tmp_path / "run") == 1
  over = dataclasses.replace(options, minutes=1e-9)
  train(over, tmp_path / "run")
  assert [m["update"] for m in told(tmp_path / "run")] == [0, 1]
