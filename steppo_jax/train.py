"""A run of reinforcement learning, read from top to bottom."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from steppo_jax import (
  algorithms,
  batch,
  checkpoint,
  evaluate,
  lease,
  metrics,
  packing,
  peers,
  run_folder,
  signals,
  speeds,
  types,
)
from steppo_jax import config as config_lib
from steppo_jax import learner as learner_lib
from steppo_jax import mesh as mesh_lib
from steppo_jax.data import store, tokenizer_files
from steppo_jax.data import trajectories as trajectories_lib
from steppo_jax.models import lora
from steppo_jax.rollout import counts, loop

# Purposes of keys: training episodes, mini-batches.
_EPISODES, _MINIBATCHES = 0, 1


class Run:
  """Everything a run is made of, built before the first update.

  Args:
    config: The options.
    folder: Where results go.
  """

  def __init__(self, config: config_lib.RunConfig, folder: pathlib.Path):
    self.config = config
    self.folder = folder
    self.tokenizer = tokenizer_files.load_tokenizer(config.tokenizer)
    self.model, self.policy = evaluate.load_policy(
      config.weights, self.tokenizer
    )
    row = config.algorithm.row()
    algorithms.check_needs(row, _provided(config))
    # Adapters off is the policy before training, without a copy of it.
    copied = row.reads_reference and not config.learner.lora.rank
    self.reference = self.policy if copied else None
    self.teacher = _load_teacher(config, self.model, self.tokenizer)
    self.mesh = mesh_lib.make_mesh(config.num_devices)
    self.tasks = evaluate.make_tasks(config.env)
    self.learner = learner_lib.Learner(
      self.model,
      row,
      config.learner,
      self.mesh,
      num_updates=config.num_updates,
      seed=config.seed,
      temperature=config.rollout.temperature,
    )
    self.evaluator = evaluate.make_evaluator(config, self.model, self.tokenizer)
    self.engine = self.evaluator.engine
    self.prompt = self.evaluator.prompt

  def episodes(self, update: int) -> list[loop.Episode]:
    """The episodes of an update, a pure function of (seed, update)."""
    config = self.config
    tasks = self.tasks.sample(
      config.tasks_per_update, seed=config.seed, update=update
    )
    return [
      loop.Episode(f"{update}-{g}-{j}", task, j, (_EPISODES, update, g, j))
      for g, task in enumerate(tasks)
      for j in range(config.group_size)
    ]

  def pack(
    self, trajectories: Sequence[types.Trajectory], update: int
  ) -> packing.Packed:
    """Trajectories as device arrays, dealt to mini-batches at random."""
    config = self.config
    parts = config.learner.num_minibatches
    rng = np.random.default_rng([config.seed, _MINIBATCHES, update])
    shape = {}
    if config.packing.layout != "rows":
      # The most that an update can need, so that it compiles once: unused rows
      # are never computed. A row holds at least one trajectory, or one prompt
      # where they do not extend each other.
      shape = {
        "num_steps": self._num_episodes * config.rollout.max_steps + 1,
        "rows_per_part": math.ceil(self._num_episodes / parts) * self._paths,
      }
    part = rng.permutation(len(trajectories)) % parts
    return packing.pack(
      trajectories,
      [int(p) for p in part],
      config.packing,
      num_parts=parts,
      rows_multiple=config.learner.microbatch_rows,
      pad_id=self.tokenizer.pad_id,
      **shape,
    )

  def pack_peers(
    self, trajectories: Sequence[types.Trajectory], packed: packing.Packed
  ) -> tuple[batch.TeacherRows | None, dict[str, int]]:
    """What the policy reads as its own teacher, and who was left out."""
    config = self.config
    if config.algorithm.teacher != config_lib.PEER:
      return None, {}
    by_step = config.packing.layout == "rows"
    rows, left_out = peers.pack(
      trajectories,
      packed,
      config.packing,
      rows_multiple=config.learner.microbatch_rows,
      pad_id=self.tokenizer.pad_id,
      rows=None if by_step else self._num_episodes * self._paths,
    )
    return rows, {"teacher/left_out": left_out}

  @property
  def _num_episodes(self) -> int:
    return self.config.tasks_per_update * self.config.group_size

  @property
  def _paths(self) -> int:
    """Most rows that a trajectory can need."""
    return 1 if self.prompt.append_only else self.config.rollout.max_steps + 1


def _provided(config: config_lib.RunConfig) -> set[str]:
  """What this trainer offers to an algorithm."""
  groups = {"group", "anchor"} if config.group_size > 1 else set()
  teacher = {"teacher"} if config.algorithm.teacher else set()
  return {"critic", "reference", "entropy"} | groups | teacher


def _load_teacher(config: config_lib.RunConfig, model, tokenizer):
  """Parameters of a teacher with weights of its own, None without one."""
  path = config.algorithm.teacher_file
  if path is None:
    return None
  if not pathlib.Path(path).is_file():
    raise ValueError(
      f"algorithm.teacher={path} is neither {config_lib.PEER!r} nor a file of "
      "weights"
    )
  sizes, params = evaluate.load_policy(path, tokenizer)
  if sizes != model:
    raise ValueError(
      f"algorithm.teacher={path} holds {sizes}, the policy is {model}: they "
      "must have the same sizes"
    )
  return params


def _resume(run: Run, store: checkpoint.Checkpoints):
  """The state to start from, and the minutes already spent."""
  state = run.learner.init(run.policy)
  if store.latest() is None:
    return state, 0.0
  state, host = store.restore(None, state)
  return state, host["minutes"]


def train(
  config: config_lib.RunConfig,
  folder: pathlib.Path,
  *,
  on_update: Callable[[int, dict[str, Any]], None],
  on_episode: Callable[[types.Trajectory], None],
  handler: signals.Handler | None = None,
) -> None:
  """Trains until `num_updates` are done, from a checkpoint if there is one.

  Args:
    config: The options.
    folder: The run's folder, from `run_folder.open_folder`.
    on_update: Called with the update and its metrics after each.
    on_episode: Called with every training episode when it ends.
    handler: Turns signals into `signals.Stopped`; see there. A run that is
      stopped saves the last state whose metrics are written.

  Raises:
    ValueError: options, weights or data that do not fit.
    RuntimeError: every episode of an update failed, the loss is not finite, no
      checkpoint is intact, or another process runs in the folder.
    signals.Stopped: a signal came; the same call goes on.
  """
  with lease.hold(folder):
    run = Run(config, folder)
    with (
      run.evaluator,
      checkpoint.Checkpoints(
        folder / run_folder.CHECKPOINTS_NAME, config.keep_checkpoints
      ) as store,
    ):
      if handler is not None:
        handler.on_overdue = store.wait
      held = contextlib.nullcontext if handler is None else handler.held
      state = _updates(run, store, on_update, on_episode, held)
  evaluate.save_policy(
    folder / run_folder.POLICY_NAME,
    run.model,
    jax.device_get(lora.merge(state.policy)),
    run.tokenizer,
    {"updates": config.num_updates, "seed": config.seed},
  )


def _updates(
  run: Run, store: checkpoint.Checkpoints, on_update, on_episode, held
):
  """All updates that are left, with metrics and checkpoints; the last state."""
  config = run.config
  state, minutes = _resume(run, store)
  first = int(state.update)
  clock = time.monotonic() - 60 * minutes
  spent = lambda: (time.monotonic() - clock) / 60
  run.engine.set_params(_for_engine(state.policy), first)
  run.engine.warm_up()
  # Without a checkpoint the run starts over: no line of it is kept.
  with metrics.MetricsWriter(run.folder, resumed=first or -1) as writer:
    if first == 0:
      found = _evaluate(run, 0) | {"minutes": spent()}
      writer.write(0, found)
      on_update(0, found)
    for update in range(first, config.num_updates):
      try:
        after, found = _one_update(run, state, update, on_episode)
      except signals.Stopped:
        # The learner takes the arrays of a state when it begins with them.
        if update != store.latest() and not _is_taken(state):
          store.save(update, state, {"minutes": spent()})
        raise
      state, done = after, update + 1
      is_last = done == config.num_updates
      if done % config.evaluation.every == 0 or is_last:
        found |= _evaluate(run, done)
      with held():
        found |= {"minutes": spent()}
        writer.write(done, found)
        if done % config.checkpoint_every == 0 or is_last:
          host = {"minutes": found["minutes"]}
          store.save(done, state, host, score=found.get("eval/success"))
        on_update(done, found)
  return state


def _is_taken(state) -> bool:
  """Whether an update has been given the arrays of a state for its own."""
  leaves = jax.tree.leaves(state)
  return any(leaf.is_deleted() for leaf in leaves if hasattr(leaf, "devices"))


def _for_engine(policy: Any) -> Any:
  """The policy on one device, as copies that the next update cannot donate.

  Adapters are merged, so that sampling takes no longer.
  """
  merged = jax.device_get(lora.merge(policy))
  return jax.device_put(merged, jax.devices()[0])


def _evaluate(run: Run, update: int) -> dict[str, Any]:
  """Greedy evaluation of the weights the engine holds."""
  found, _ = run.evaluator()
  return found | {"eval/panel": evaluate.panel_hash(run.evaluator.tasks)}


def _one_update(run: Run, state, update: int, on_episode):
  """Rollout, packing, learning; returns the state and named numbers."""
  started = time.monotonic()
  before = dataclasses.replace(run.engine.counters)
  trajectories = loop.run(
    run.engine,
    run.evaluator.make_env,
    run.episodes(update),
    run.prompt,
    run.evaluator.rollout,
    on_finish=on_episode,
  )
  _record(run, trajectories, update)
  rolled = time.monotonic()
  whole = [t for t in trajectories if t.error is None]
  if not whole:
    raise RuntimeError(
      f"update {update}: all {len(trajectories)} episodes failed, the first "
      f"with {trajectories[0].error}"
    )
  packed = run.pack(whole, update)
  teacher_rows, left_out = run.pack_peers(whole, packed)
  state, found = run.learner.update(
    state,
    run.reference,
    learner_lib.put_batch(packed, run.mesh, teacher_rows),
    run.teacher,
  )
  pairs, plain = learner_lib.split_metrics(jax.device_get(found))
  learned = time.monotonic()
  run.engine.set_params(_for_engine(state.policy), update + 1)
  mean = metrics.Mean()
  mean.add({f"rollout/{k}": v for k, v in counts.summary(trajectories).items()})
  mean.add(pairs)
  result = mean.result() | plain | left_out
  if "critic/unexplained_variance" in result:
    unexplained = result["critic/unexplained_variance"]
    result["critic/explained_variance"] = 1.0 - unexplained
  if not np.isfinite(result["policy/grad_norm"]):
    raise RuntimeError(
      f"update {update}: the policy's gradient is not finite; lower "
      "learner.learning_rate, or look at the batch's log-ratios"
    )
  result |= {
    "compiles/sampler": run.engine.compiles,
    "compiles/learner": run.learner.compiles,
  }
  times = speeds.Times(started, rolled, learned)
  return state, (
    result
    | speeds.of_update(times, packed, trajectories)
    | speeds.of_sampler(run.engine, before, packed)
  )


def _record(run: Run, trajectories, update: int) -> None:
  """Keeps the episodes of an update, if it is one of those to be kept."""
  every = run.config.record_every
  if every is None or update % every:
    return
  output, name = run.folder / "data", f"update{update}"
  # A run that goes on from a checkpoint plays the same episodes again.
  done = trajectories_lib.folder_of(output, name) / store.DIGESTS
  if not done.exists():
    trajectories_lib.write(output, name, {"train": trajectories}, run.tokenizer)
