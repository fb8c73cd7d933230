"""Supervised runs: the warm start, and the control of equal time."""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from steppo_jax import config as config_lib
from steppo_jax import evaluate, lease, metrics, run_folder, supervised, types
from steppo_jax import players as players_lib
from steppo_jax.data import demonstrations
from steppo_jax.models import lora, presets, transformer
from steppo_jax.rollout import prompting, sections


def load_rows(
  config: config_lib.SupervisedRun, prompt: prompting.Prompt, pad_id: int
):
  """The demonstrations as packed rows; makes the dataset when missing."""
  options = config.demonstrations
  demonstrations.prepare(config.data_dir, options)
  trajectories = []
  for number, episode in enumerate(
    demonstrations.load(config.data_dir, options)
  ):
    task = types.Task(
      f"{episode['uid']}#{number}", options.env, episode["family"], {}
    )
    turns = [(s["observation"], s["action"]) for s in episode["steps"][:-1]]
    trajectories.append(
      supervised.demonstration(
        task, turns, prompt, max_tokens=config.packing.row_length
      )
    )
  return supervised.pack_rows(trajectories, config.packing, pad_id=pad_id)


def _start(config: config_lib.SupervisedRun, tokenizer):
  """Sizes and parameters to start from: a file's, or fresh ones."""
  if config.weights is None:
    model = presets.get(config.model, tokenizer.vocab_size)
    return model, transformer.init(model, jax.random.key(config.seed))
  model, params = evaluate.load_policy(config.weights, tokenizer)
  return model, jax.tree.map(jnp.asarray, params)


def train(
  config: config_lib.SupervisedRun,
  folder: pathlib.Path,
  *,
  on_update: Callable[[int, dict[str, Any]], None],
) -> None:
  """Trains on demonstrations; evaluates as `train.train` does.

  A supervised run is short and starts over when it was interrupted.

  Args:
    config: The options.
    folder: The run's folder, from `run_folder.open_folder`.
    on_update: Called with the optimizer step and its metrics.

  Raises:
    ValueError: options, weights or data that do not fit.
    RuntimeError: another process runs in the folder.
  """
  with lease.hold(folder):
    _train(config, folder, on_update)


def _train(config, folder, on_update):
  tokenizer = evaluate.load_tokenizer(config)
  prompt = sections.make(config.prompt, tokenizer, config.env.name)
  model, params = _start(config, tokenizer)
  rows = load_rows(config, prompt, tokenizer.pad_id)
  panel = players_lib.make_tasks(config.env).panel(
    config.evaluation.split, config.evaluation.episodes
  )
  players = players_lib.make(config, model, tokenizer)
  evaluator = evaluate.Evaluator(players, panel, config.evaluation.temperature)
  optimizer, step = supervised.make_step(model, config.training)
  params = lora.add(params, config.training.lora, jax.random.key(config.seed))
  state = optimizer.init(lora.split(params)[0])
  clock = _Clock(config.minutes)
  mean = metrics.Mean()

  def finish(done):
    nonlocal mean
    minutes = clock.minutes
    with clock.paused():
      players.engine.set_params(
        jax.tree.map(jnp.copy, lora.merge(params)), done
      )
      found = mean.result() | evaluator()[0] | {"minutes": minutes}
    mean = metrics.Mean()
    writer.write(done, found)
    on_update(done, found)

  with players, metrics.MetricsWriter(folder, resumed=0) as writer:
    finish(0)
    last = config.training.num_steps
    batches = supervised.batches(rows, config.training, config.seed)
    for done in range(1, last + 1):
      params, state, loss = step(params, state, next(batches))
      mean.add({"supervised/loss": (float(loss), 1.0)})
      over = clock.is_over or done == last
      if over or done % config.evaluation.every == 0:
        finish(done)
      else:
        on_update(done, {"supervised/loss": float(loss)})
      if over:
        break
  facts = {
    "steps": done,
    "seed": config.seed,
    "commit": run_folder.commit(),
    "command": run_folder.command_line(),
  }
  targets = [folder / run_folder.POLICY_NAME, config.save_weights]
  for target in filter(None, targets):
    evaluate.save_policy(
      target, model, jax.device_get(lora.merge(params)), tokenizer, facts
    )


class _Clock:
  """Minutes of training, evaluations left out."""

  def __init__(self, limit: float | None):
    self._limit = limit
    self._start = time.monotonic()

  @property
  def minutes(self) -> float:
    return (time.monotonic() - self._start) / 60

  @property
  def is_over(self) -> bool:
    return self._limit is not None and self.minutes >= self._limit

  @contextlib.contextmanager
  def paused(self):
    """Time spent inside does not count."""
    paused = time.monotonic()
    yield
    self._start += time.monotonic() - paused
