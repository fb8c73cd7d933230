"""Runs of a tiny model on tiny games, end to end."""

import contextlib
import dataclasses
import pathlib

import jax
import worlds

from steppo_jax import trees
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.models.formats import weights
from steppo_jax.packing.options import PackingConfig
from steppo_jax.pretrained import policy
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config, train

WARM = (
  pathlib.Path(__file__)
  .parents[2]
  .joinpath("experiments", "weights", "household_warm_start.safetensors")
)


def small_config(folder: pathlib.Path, **changes) -> config.RunConfig:
  """Three updates of a tiny model on tiny games; writes its start policy."""
  folder.mkdir(parents=True, exist_ok=True)
  start = folder / "start.safetensors"
  if not start.exists():
    policy.save_policy(
      start, worlds.model(), jax.device_get(worlds.policy()),
      worlds.tokenizer(), {},
    )  # fmt: skip
  made = config.RunConfig(
    weights=str(start),
    run_dir=str(folder / "run"),
    num_updates=3,
    tasks_per_update=6,
    checkpoint_every=1,
    num_devices=1,
    algorithm=config.AlgorithmConfig(
      name="steppo", clip_low=0.2, clip_high=0.2, kl_coef=0.0
    ),
    env=config.EnvConfig(size="tiny"),
    rollout=dataclasses.replace(worlds.ROLLOUT, max_steps=4),
    sampler=SamplerConfig(num_slots=2, prefill_lengths=(64,)),
    packing=PackingConfig(row_length=worlds.CONTEXT),
    learner=LearnerConfig(
      num_minibatches=2, microbatch_rows=2, critic_warmup=1, critic_epochs=1
    ),
    evaluation=config.EvalConfig(every=2, episodes=8),
  )
  return dataclasses.replace(made, **changes)


def run(options, *, stop_after=None):
  """Trains; `stop_after` raises between two updates, as a kill would."""

  class Killed(Exception):
    pass

  def on_update(done, found):
    if done == stop_after:
      raise Killed

  folder = run_folder.open_folder(options, "test", "test")
  with contextlib.suppress(Killed):
    train.train(options, folder, on_update=on_update, on_episode=lambda _: None)
  return folder


def bits(folder):
  """Every parameter's bytes; the file's own header has no fixed order."""
  params, _ = weights.load_params(folder / "policy.safetensors")
  return {k: v.tobytes() for k, v in trees.flatten(params).items()}
