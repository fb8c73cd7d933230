"""Supervised runs: the warm start, and the control of equal time."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import trees, types
from steppo_jax.batch import TokenBatch
from steppo_jax.datasets import demonstrations
from steppo_jax.learner import supervised
from steppo_jax.models import lora, presets, transformer
from steppo_jax.packing import rows as packing
from steppo_jax.packing.options import PackingConfig
from steppo_jax.pretrained import policy
from steppo_jax.prompts import base as prompt_base
from steppo_jax.prompts import sections
from steppo_jax.storage import folder as run_folder
from steppo_jax.storage import lease, metrics
from steppo_jax.training import config as config_lib
from steppo_jax.training import evaluate, experiments
from steppo_jax.training import players as players_lib


def load_rows(
  config: config_lib.SupervisedRun,
  prompt: prompt_base.Prompt,
  pad_id: int,
  vocab_size: int,
) -> tuple[TokenBatch, int]:
  """The demonstrations as packed rows; makes the dataset when missing.

  Returns:
    The rows [B, T], and how many demonstrations were cut to fit one.
  """
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
      demonstration(task, turns, prompt, max_tokens=config.packing.row_length)
    )
  rows = pack_rows(
    trajectories, config.packing, pad_id=pad_id, vocab_size=vocab_size
  )
  return rows, sum(not t.success for t in trajectories)


def _start(config: config_lib.SupervisedRun, tokenizer):
  """Sizes and parameters to start from: a file's, or fresh ones."""
  if config.weights is None:
    model = presets.get(config.model, tokenizer.vocab_size)
    model = dataclasses.replace(model, num_ids=tokenizer.num_ids)
    return model, transformer.init(model, jax.random.key(config.seed))
  model, params = policy.load_policy(config.weights, tokenizer, config.base)
  return model, jax.tree.map(jnp.asarray, params)


def train(
  config: config_lib.SupervisedRun,
  folder: pathlib.Path,
  *,
  on_update: Callable[[int, dict[str, Any]], None],
) -> None:
  """Trains on demonstrations; evaluates as `training.train.train` does.

  A supervised run is short and starts over when it was interrupted.

  Args:
    config: The options.
    folder: The run's folder, from `folder.open_folder`.
    on_update: Called with the optimizer step and its metrics.

  Raises:
    ValueError: options, weights or data that do not fit.
    RuntimeError: another process runs in the folder, or the loss, its gradient
      or a parameter is not finite.
  """
  experiments.check_written(config.save_weights)
  with lease.hold(folder):
    _train(config, folder, on_update)


def _train(config, folder, on_update):
  tokenizer = policy.load_tokenizer(
    config.tokenizer, config.weights, config.base
  )
  prompt = sections.make(config.prompt, tokenizer, config.env.name)
  model, params = _start(config, tokenizer)
  rows, cut = load_rows(config, prompt, tokenizer.pad_id, model.vocab_size)
  # Refuses too few rows before anything is compiled.
  batches = supervised.batches(rows, config.training, config.seed)
  panel = players_lib.panel(
    players_lib.make_tasks(config.env), config.env.name,
    config.evaluation.split, config.evaluation.episodes,
  )  # fmt: skip
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
      players.engine.set_params(params, done)
      found = mean.result() | evaluator()[0] | {"minutes": minutes}
    mean = metrics.Mean()
    writer.write(done, found)
    on_update(done, found)

  with players, metrics.MetricsWriter(folder, resumed=0) as writer:
    mean.add({"supervised/rows": (len(rows.tokens), 1.0)})
    mean.add({"supervised/cut": (cut, 1.0)})
    finish(0)
    last = config.training.num_steps
    for done in range(1, last + 1):
      params, state, loss = step(params, state, next(batches))
      _check_finite(done, float(loss), params)
      mean.add({"supervised/loss": (float(loss), 1.0)})
      over = clock.is_over or done == last
      if over or done % config.evaluation.every == 0:
        finish(done)
      else:
        on_update(done, {"supervised/loss": float(loss)})
      if over:
        break
  _save(config, folder, model, params, tokenizer, done)


def _save(config, folder, model, params, tokenizer, done) -> None:
  """Writes the policy, adapters merged, and adapters by themselves."""
  facts = {
    "steps": done,
    "seed": config.seed,
    "commit": run_folder.commit(),
    "command": run_folder.command_line(),
  }
  if lora.has(params):
    policy.save_adapters(
      folder / run_folder.ADAPTER_NAME, model, jax.device_get(params),
      config.weights, config.base,
    )  # fmt: skip
  targets = [folder / run_folder.POLICY_NAME, config.save_weights]
  for target in filter(None, targets):
    policy.save_policy(
      target, model, jax.device_get(lora.merge(params)), tokenizer, facts
    )


def _check_finite(done: int, loss: float, params) -> None:
  if np.isfinite(loss):
    return
  flat = trees.flatten(params)
  wrong = [name for name, x in flat.items() if not jnp.isfinite(x).all()]
  raise RuntimeError(
    f"step {done}: the loss, its gradient or a parameter is not finite (loss "
    f"{loss}, parameters {', '.join(wrong[:8]) or 'finite'}); nothing is "
    "saved: lower training.learning_rate, or look at the weights that it began "
    "with"
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


def demonstration(
  task: types.Task,
  turns: Sequence[tuple[str, str]],
  prompt: Any,
  *,
  max_tokens: int,
) -> types.Trajectory:
  """A recorded episode as step records, cut off before it gets too long.

  Args:
    task: What was demonstrated.
    turns: (observation, action) of every step, in order.
    prompt: Prompt builder, such as `prompts.base.CompactPrompt`.
    max_tokens: An episode that would get longer is truncated.

  Raises:
    ValueError: not even the first step fits.
  """
  steps, told = [], [types.Turn(turns[0][0])]
  prompt_ids = prompt.first(told[0])
  for index, (_, action) in enumerate(turns):
    response_ids = prompt.response(action)
    if len(prompt_ids) + len(response_ids) > max_tokens:
      break
    last = index == len(turns) - 1
    steps.append(
      types.Step(
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        response_mask=np.ones(len(response_ids), bool),
        behaviour_logp=np.zeros(len(response_ids), np.float32),
        reward=float(last),
        trajectory_uid=task.uid,
        step_index=index,
        group_uid=task.uid,
        policy_version=0,
        terminated=last,
      )
    )
    if not last:
      answered = told[-1]._replace(response_ids=response_ids)
      told[-1:] = [answered, types.Turn(turns[index + 1][0])]
      prompt_ids = prompt.extend(prompt_ids, told)
  if not steps:
    raise ValueError(
      f"demonstration {task.uid}: the first step is longer than {max_tokens} "
      "tokens: raise packing.row_length"
    )
  final = None
  if not steps[-1].terminated:
    steps[-1] = dataclasses.replace(steps[-1], truncated=True)
    final = prompt_ids[:max_tokens]
  return types.Trajectory(task.uid, task, tuple(steps), final, final is None)


def pack_rows(
  trajectories: Sequence[types.Trajectory],
  config: PackingConfig,
  *,
  pad_id: int,
  vocab_size: int | None = None,
) -> TokenBatch:
  """Demonstrations as rows [B, T]; rows that hold nothing are left out."""
  packed = packing.pack(
    trajectories,
    [0] * len(trajectories),
    config,
    num_parts=1,
    rows_multiple=1,
    pad_id=pad_id,
    vocab_size=vocab_size,
  )
  used = int(packed.rows_used[0])
  return jax.tree.map(lambda x: x[0, :used], packed.tokens)
