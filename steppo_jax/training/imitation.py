"""Supervised runs: the warm start, and the control of equal time."""

import contextlib
import dataclasses
import functools
import itertools
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
from steppo_jax.models import lora, out_of_memory, presets, transformer
from steppo_jax.packing import rows as packing
from steppo_jax.packing.options import PackingConfig
from steppo_jax.pretrained import policy
from steppo_jax.processes import signals
from steppo_jax.prompts import base as prompt_base
from steppo_jax.prompts import sections
from steppo_jax.storage import checkpoint, lease, metrics
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import evaluate, experiments
from steppo_jax.training import players as players_lib

# Seconds between two checkpoints that no evaluation brings.
_SAVE_S = 300.0


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
    trajectories.append(
      demonstration(
        task, turns(episode), prompt, max_tokens=config.packing.row_length
      )
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
  handler: signals.Handler | None = None,
) -> None:
  """Trains on demonstrations; evaluates as `training.train.train` does.

  A checkpoint is written at every evaluation, every five minutes, and when a
  signal comes. A run that goes on from one ends with the same bits as one that
  was never stopped, unless `minutes` ends it.

  Args:
    config: The options.
    folder: The run's folder, from `folder.open_folder`.
    on_update: Called with the optimizer step and its metrics.
    handler: Turns signals into `signals.Stopped`; see there.

  Raises:
    ValueError: options, weights or data that do not fit.
    RuntimeError: another process runs in the folder, or the loss, its gradient
      or a parameter is not finite.
    signals.Stopped: a signal came; the same call goes on.
  """
  experiments.check_written(config.save_weights)
  store = checkpoint.Checkpoints(folder / run_folder.CHECKPOINTS_NAME, 1)
  with lease.hold(folder), store:
    if handler is not None:
      handler.on_overdue = store.wait
    _train(config, folder, on_update, store, handler)


_explained = functools.partial(
  out_of_memory.explained, "a step of supervised training",
  "lower training.rows_per_step", "train adapters (training.lora.rank)",
)  # fmt: skip


@dataclasses.dataclass
class _Reached:
  """How far a run has come.

  Attributes:
    params: Parameters of the policy.
    optimizer: The state of the optimizer of the trained ones.
    steps: Optimizer steps done.
    minutes: Time spent on them.
    losses: Sum of the losses since the last line of metrics, and their number.
    told: The step of that line; -1 before the first.
  """

  params: Any
  optimizer: Any
  steps: int = 0
  minutes: float = 0.0
  losses: tuple[float, int] = (0.0, 0)
  told: int = -1

  def save(self, store: checkpoint.Checkpoints) -> None:
    """Writes what is trained; the rest is in the run's weights."""
    facts = ("steps", "minutes", "losses", "told")
    host = {name: getattr(self, name) for name in facts}
    host["losses"] = list(self.losses)
    arrays = lora.split(self.params)[0], self.optimizer
    store.save(self.steps, arrays, host)

  def restore(self, store: checkpoint.Checkpoints) -> None:
    """Goes back to the newest checkpoint, if there is one."""
    if store.latest() is None:
      return
    trained, frozen = lora.split(self.params)
    arrays, host = store.restore(None, (trained, self.optimizer))
    self.params, self.optimizer = lora.join(arrays[0], frozen), arrays[1]
    # Of the checkpoint that was read: the newest may be damaged.
    self.steps, self.losses = host["steps"], tuple(host["losses"])
    self.minutes, self.told = host["minutes"], host["told"]


def _train(config, folder, on_update, store, handler):
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
  reached = _Reached(params, optimizer.init(lora.split(params)[0]))
  del params
  with players:
    reached.restore(store)
    once = {"supervised/rows": len(rows.tokens), "supervised/cut": cut}

    def held():
      own = {"policy": reached.params, "optimizer": reached.optimizer}
      engine = getattr(players.engine, "held", {})
      return own | {f"sampler's {name}": x for name, x in engine.items()}

    def evaluated():
      after = f"the evaluation after step {reached.steps}"
      with out_of_memory.part(after, held):
        players.engine.set_params(reached.params, reached.steps)
        return (once if reached.told < 0 else {}) | evaluator()[0]

    batches = itertools.islice(batches, reached.steps, None)
    with metrics.MetricsWriter(
      folder, resumed=reached.told, sinks=config.metrics,
      options=run_folder.flat(run_folder.options_of(config)),
    ) as writer:  # fmt: skip
      try:
        _steps(
          config, reached, step, batches, evaluated, writer, on_update, store,
          contextlib.nullcontext if handler is None else handler.held,
        )  # fmt: skip
      except signals.Stopped:
        if reached.steps and reached.steps != store.latest():
          reached.save(store)
        raise
  store.wait()
  _save(config, folder, model, reached.params, tokenizer, reached.steps)


def _steps(
  config, reached, step, batches, evaluated, writer, on_update, store, held
):
  """The steps that are left, evaluations and checkpoints."""
  last, every = config.training.num_steps, config.evaluation.every
  clock, saved = _Clock(reached.minutes), time.monotonic()
  while True:
    late = config.minutes is not None and reached.minutes >= config.minutes
    over = late or reached.steps == last
    if over or reached.steps % every == 0:
      if reached.told != reached.steps:
        with clock.paused():
          found = evaluated() | {"minutes": reached.minutes}
        total, count = reached.losses
        if count:
          found["supervised/loss"] = total / count
        with held():
          writer.write(reached.steps, found)
          reached.told, reached.losses = reached.steps, (0.0, 0)
          on_update(reached.steps, found)
      if reached.steps and reached.steps != store.latest():
        with clock.paused():
          reached.save(store)
        saved = time.monotonic()
    if over:
      return
    batch = next(batches)
    with held(), _explained():
      reached.params, reached.optimizer, loss = step(
        reached.params, reached.optimizer, batch
      )
      reached.steps += 1
      _check_finite(reached.steps, loss := float(loss), reached.params)
      total, count = reached.losses
      reached.losses = total + loss, count + 1
      reached.minutes = clock.minutes
      if reached.steps % every and reached.steps != last:
        on_update(reached.steps, {"supervised/loss": loss})
    if time.monotonic() - saved > _SAVE_S:
      with clock.paused():
        reached.save(store)
      saved = time.monotonic()


def _save(config, folder, model, params, tokenizer, done) -> None:
  """Writes the policy, adapters merged, and adapters by themselves."""
  facts = {
    "steps": done,
    "seed": config.seed,
    "commit": run_folder.commit(),
    "command": run_folder.command_line(),
  }
  whole, adapters = policy.fetch(params)
  if adapters:
    policy.save_adapters(
      folder / run_folder.ADAPTER_NAME, model, adapters, config.weights,
      config.base,
    )  # fmt: skip
  targets = [folder / run_folder.POLICY_NAME, config.save_weights]
  for target in filter(None, targets):
    policy.save_policy(target, model, whole, tokenizer, facts)


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
  """Minutes of training, evaluations left out.

  Args:
    minutes: Those that were spent before.
  """

  def __init__(self, minutes: float):
    self._start = time.monotonic() - 60 * minutes

  @property
  def minutes(self) -> float:
    return (time.monotonic() - self._start) / 60

  @contextlib.contextmanager
  def paused(self):
    """Time spent inside does not count."""
    paused = time.monotonic()
    yield
    self._start += time.monotonic() - paused


def turns(episode: dict[str, Any]) -> list[tuple[types.Turn, str]]:
  """What was seen and answered in an episode of `demonstrations.load`."""
  return [
    (types.Turn(step["observation"], step["commands"]), step["action"])
    for step in episode["steps"][:-1]
  ]


def demonstration(
  task: types.Task,
  turns: Sequence[tuple[types.Turn, str]],
  prompt: Any,
  *,
  max_tokens: int,
) -> types.Trajectory:
  """A recorded episode as step records, cut off before it gets too long.

  Its prompts are those that the rollout loop would give who plays it.

  Args:
    task: What was demonstrated.
    turns: What was seen at every step, with what could be answered, and the
      action, in order.
    prompt: Prompt builder, such as `prompts.base.CompactPrompt`.
    max_tokens: An episode that would get longer is truncated.

  Raises:
    ValueError: not even the first step fits.
  """
  steps, told = [], [turns[0][0]]
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
      told[-1:] = [answered, turns[index + 1][0]]
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
