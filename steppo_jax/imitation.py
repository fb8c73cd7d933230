"""A run of supervised learning: the warm start, and the control of equal time."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from steppo_jax import config as config_lib
from steppo_jax import evaluate, metrics, run_folder, supervised, types
from steppo_jax.data import demonstrations
from steppo_jax.data import tokenizer as tokenizer_lib
from steppo_jax.models import presets, transformer
from steppo_jax.rollout import prompting

# The forward pass is the learner's own; see `LearnerConfig`.
_ATTENTION_BLOCK = 64
_LOGPROB_CHUNK = 2048


def load_rows(config: config_lib.SupervisedRun, prompt, pad_id: int):
  """The demonstrations as packed rows; makes the dataset when missing."""
  options = config.demonstrations
  demonstrations.prepare(config.data_dir, options)
  trajectories = []
  for number, episode in enumerate(
    demonstrations.load(config.data_dir, options)
  ):
    task = types.Task(
      f"{episode['uid']}#{number}", "household", episode["family"], {}
    )
    turns = [(s["observation"], s["action"]) for s in episode["steps"][:-1]]
    trajectories.append(supervised.demonstration(task, turns, prompt))
  return supervised.pack_rows(trajectories, config.packing, pad_id=pad_id)


def train(
  config: config_lib.SupervisedRun,
  folder: pathlib.Path,
  *,
  on_update: Callable[[int, dict[str, Any]], None],
) -> None:
  """Trains on demonstrations; evaluates as `train.train` does.

  A run is short and starts over when it was interrupted.

  Args:
    config: The options.
    folder: The run's folder, from `run_folder.open_folder`.
    on_update: Called with the optimizer step and its metrics.

  Raises:
    ValueError: options, weights or data that do not fit.
  """
  tokenizer = tokenizer_lib.SentencePieceTokenizer()
  prompt = prompting.CompactPrompt(tokenizer)
  if config.weights is None:
    model = presets.get(config.model, tokenizer.vocab_size)
    params = transformer.init(model, jax.random.key(config.seed))
  else:
    model, params = evaluate.load_policy(config.weights, tokenizer)
    params = jax.tree.map(jax.numpy.asarray, params)
  rows = load_rows(config, prompt, tokenizer.pad_id)
  engine = evaluate.make_engine(
    model, tokenizer, config.sampler, config.rollout, config.seed
  )
  panel = evaluate.make_tasks(config.env).panel(
    config.evaluation.split, config.evaluation.episodes
  )
  evaluator = evaluate.Evaluator(
    engine, prompt, config.rollout, config.env, panel
  )
  optimizer, step = supervised.make_step(
    model,
    config.training,
    attention_block=_ATTENTION_BLOCK,
    logprob_chunk=_LOGPROB_CHUNK,
  )
  state = optimizer.init(params)
  engine.set_params(params, 0)
  engine.warm_up()
  start = time.monotonic()
  batches = supervised.batches(rows, config.training, config.seed)
  last = config.training.num_steps
  mean = metrics.Mean()

  def finish(done):
    found = mean.result()
    engine.set_params(jax.tree.map(jax.numpy.copy, params), done)
    found |= evaluator()[0] | {"minutes": (time.monotonic() - start) / 60}
    writer.write(done, found)
    on_update(done, found)

  with metrics.MetricsWriter(folder, resumed=0) as writer:
    finish(0)
    for done in range(1, last + 1):
      params, state, loss = step(params, state, next(batches))
      mean.add({"supervised/loss": (float(loss), 1.0)})
      minutes = (time.monotonic() - start) / 60
      over = config.minutes is not None and minutes >= config.minutes
      if over or done == last or done % config.evaluation.every == 0:
        finish(done)
        mean = metrics.Mean()
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
  params = jax.device_get(params)
  targets = [folder / run_folder.POLICY_NAME, config.save_weights]
  for target in filter(None, targets):
    evaluate.save_policy(target, model, params, tokenizer, facts)
