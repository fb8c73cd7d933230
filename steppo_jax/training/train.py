"""A run of reinforcement learning, read from top to bottom."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from steppo_jax import types
from steppo_jax.learner import optimizers
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import out_of_memory
from steppo_jax.packing import rows as packing
from steppo_jax.pretrained import policy as pretrained_policy
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.processes import kill_points, signals, waits
from steppo_jax.rollout import counts
from steppo_jax.storage import (
  checkpoint,
  compile_events,
  events,
  lease,
  manifest,
  metrics,
  sinks,
)
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import credit, dynamic_sampling, speeds
from steppo_jax.training.run import Run


def _resume(run: Run, store: checkpoint.Checkpoints):
  """The state to start from, and the minutes already spent."""
  state = run.start()
  newest = store.latest()
  if newest is None:
    return state, 0.0
  # Their states differ in every array, of which none says why. A checkpoint
  # that is broken is for `restore` to tell.
  with contextlib.suppress(manifest.Broken):
    wrote = store.facts(newest)[0].get("optimizer", "adamw")
    if wrote != run.config.learner.optimizer:
      raise ValueError(
        f"checkpoint {newest} was written with learner.optimizer={wrote}, the "
        f"run has {run.config.learner.optimizer}: take {wrote}, or another "
        "run_dir"
      )
  state, host = store.restore(None, state)
  run.learner.choose_again(host.get("choice"))
  return state, host["minutes"]


def _evaluate(run: Run, state, update: int) -> dict[str, Any]:
  """Plays the panel with the parameters that the run would keep."""
  part = f"the evaluation after update {update}"
  with _part(run, state, part, "rollouts and evaluations share a sampler"):
    kept = optimizers.evaluated(state.policy_optimizer, state.policy)
    return run.evaluate(update, None if kept is state.policy else kept)


def _hand_over(run: Run, state, update: int) -> None:
  """Gives the sampler the weights of a state."""
  part = f"the hand-over after update {update}"
  with _part(run, state, part, "old weights go before new ones come"):
    run.hand_over(state.policy, update)


def _part(
  run: Run, state, name: str, in_turns: str | None = None
) -> contextlib.AbstractContextManager:
  """Says which part of a run had no memory, and what the run held.

  Args:
    run: The run.
    state: The learner's.
    name: See `out_of_memory.part`.
    in_turns: What takes less memory where rollouts and updates take turns.
  """
  changes = []
  if in_turns and run.config.rollout.staleness:
    changes.append(f"take rollout.staleness=0, where {in_turns}")

  def held():
    names = "policy", "policy_optimizer", "critic", "critic_optimizer"
    own = {
      name.replace("_", "'s "): getattr(state, name, None) for name in names
    }
    lagging = {"policy of a moment ago": getattr(state, "teacher", None)}
    return own | lagging | run.held()

  return out_of_memory.part(name, held, *changes)


def _watched(config, log) -> contextlib.AbstractContextManager:
  """Tells of parties that wait for each other for too long."""
  limit = config.rollout.stall_seconds
  return contextlib.nullcontext() if not limit else waits.Watch(limit, log.note)


def _facts(run: Run, minutes: float) -> dict[str, Any]:
  """What a checkpoint tells beside its arrays."""
  return {
    "minutes": minutes,
    "optimizer": run.config.learner.optimizer,
    "choice": run.learner.choice,
  }


def train(
  config: config_lib.RunConfig,
  folder: pathlib.Path,
  *,
  on_update: Callable[[int, dict[str, Any]], None],
  on_episode: Callable[[types.Trajectory], None],
  handler: signals.Handler | None = None,
  age_s: float = 0.0,
  hosts: hosts_lib.Hosts = hosts_lib.ALONE,
  on_failure: Callable[[types.Trajectory], None] = lambda _: None,
) -> None:
  """Trains until `num_updates` are done, from a checkpoint if there is one.

  Args:
    config: The options.
    folder: The run's folder, from `folder.open_folder`.
    on_update: Called with the update and its metrics after each.
    on_episode: Called with every training episode when it ends.
    handler: Turns signals into `signals.Stopped`; see there. A run that is
      stopped saves the last state whose metrics are written.
    age_s: Seconds that the process has taken already, for the event log.
    hosts: The processes of the run, from `join.join`. All call this with the
      same options and folder; the first one writes.
    on_failure: Called with every episode that ends in an error, those of
      evaluations included.

  Raises:
    ValueError: options, weights or data that do not fit.
    RuntimeError: every episode of an update or an evaluation failed, something
      of an update is not finite (`learner.state.check_finite`), no checkpoint
      is intact, or another process runs in the folder.
    signals.Stopped: a signal came, to this process or another, or one is lost
      (`exchange.Lost`); the same call goes on.
  """
  sinks.check(config.metrics)
  first = hosts.is_first
  with (
    hosts_lib.losses_stop_the_run(hosts),
    lease.hold(folder) if first else contextlib.nullcontext(),
    events.Log(folder if first else None, age_s=age_s) as log,
    compile_events.counts_compiles(log),
    _watched(config, log),
  ):
    kill_points.passed("train: folder held")
    with log.span(events.SETUP):
      run = Run(config, folder, log, on_episode, hosts, on_failure)
    kill_points.passed("train: built")
    with contextlib.ExitStack() as stack:
      stack.callback(run.close)
      store = checkpoint.Checkpoints(
        folder / run_folder.CHECKPOINTS_NAME, config.keep_checkpoints, hosts
      )
      stack.callback(_close, store, run)
      if handler is not None:
        handler.on_overdue = functools.partial(_flush, store, run)
      held = contextlib.nullcontext if handler is None else handler.held
      state = _updates(run, store, on_update, held)
    kill_points.passed("train: updates done")
    with log.span(events.CHECKPOINT):
      kept = optimizers.evaluated(state.policy_optimizer, state.policy)
      # Sampler and moments are not needed any more, nor is a second policy.
      del state
      policy, adapted = pretrained_policy.fetch(kept, keep=first)
      if adapted:
        pretrained_policy.save_adapters(
          folder / run_folder.ADAPTER_NAME, run.model, adapted, config.weights,
          config.base,
        )  # fmt: skip
      if first:
        pretrained_policy.save_policy(
          folder / run_folder.POLICY_NAME,
          run.model,
          policy,
          run.tokenizer,
          {"updates": config.num_updates, "seed": config.seed},
        )
      hosts.wait("the end")
    kill_points.passed("train: policy written")


def _flush(store: checkpoint.Checkpoints, run: Run) -> None:
  if run.hosts.lost is None:  # It would wait for what the lost one writes.
    store.wait()


def _close(store: checkpoint.Checkpoints, run: Run) -> None:
  if run.hosts.lost is None:
    with run.log.span(events.CHECKPOINT):
      store.close()


def _updates(run: Run, store: checkpoint.Checkpoints, on_update, held):
  """All updates that are left, with metrics and checkpoints; the last state."""
  config, log = run.config, run.log
  with log.span(events.SETUP):
    state, minutes = _resume(run, store)
    saved = first = int(state.update)
    clock = time.monotonic() - 60 * minutes
    spent = lambda: (time.monotonic() - clock) / 60
    _hand_over(run, state, first)
    with _part(run, state, "the start"):
      run.players.engine.warm_up()
    # Without a checkpoint the run starts over: no line of it is kept.
    writer = metrics.MetricsWriter(
      run.folder if run.hosts.is_first else None,
      resumed=first or -1,
      sinks=config.metrics,
      options=run_folder.flat(run_folder.options_of(config)),
    )
  kill_points.passed("train: warmed up")
  with writer:
    if first == 0:
      found = _evaluate(run, state, 0) | {"minutes": spent()}
      with log.span(events.METRICS):
        writer.write(0, found)
        on_update(0, found)
    for update in range(first, config.num_updates):
      try:
        after, found = _one_update(run, state, update, held)
      except signals.Stopped:
        if run.hosts.lost is None:
          # The learner takes the arrays of a state when it begins with them.
          whole = None if _is_taken(state) else update
          if run.hosts.stop_at(whole) and update != store.latest():
            store.save(update, state, _facts(run, spent()))
        raise
      state, done = after, update + 1
      is_last = done == config.num_updates
      if done % config.evaluation.every == 0 or is_last:
        found |= _evaluate(run, state, done)
      with held():
        found |= {"minutes": spent()}
        with (
          log.span(events.CHECKPOINT, update),
          waits.on(waits.LEARNER, "disk", "the checkpoint before"),
        ):
          # What is told is at most one interval ahead of what is safe.
          store.wait()
        with log.span(events.METRICS, update):
          writer.write(done, found)
        if done % config.checkpoint_every == 0 or is_last:
          _save(run, store, state, found, saved)
          saved = done
        with log.span(events.METRICS, update):
          on_update(done, found)
    with log.span(events.CHECKPOINT):
      store.wait()
    run.players.settle(config.num_updates)
  return state


def _save(run: Run, store, state, found, saved: int) -> None:
  """A checkpoint; `saved` is the one before."""
  done = int(state.update)
  with run.log.span(events.CHECKPOINT, done - 1):
    store.save(
      done, state, _facts(run, found["minutes"]),
      score=found.get("eval/success"),
    )  # fmt: skip
    # What the checkpoint before needs: this one may turn out damaged.
    run.rollouts.prune(saved)
  kill_points.passed("train: saved")


def _is_taken(state) -> bool:
  """Whether an update has been given the arrays of a state for its own."""
  leaves = jax.tree.leaves(state)
  return any(leaf.is_deleted() for leaf in leaves if hasattr(leaf, "devices"))


def _learn(run: Run, state, put, update: int):
  """The state after an update of a batch, and what it found on the host."""
  with _part(run, state, ""), out_of_memory.explained(
    f"update {update} ran on a microbatch of "
    f"learner.microbatch_rows={run.config.learner.microbatch_rows}",
    "lower learner.microbatch_rows", "take learner.remat=full",
    "take compute=bfloat16", "train adapters (learner.lora.rank)",
    "split the model over more devices (mesh.fsdp)",
    "lower sampler.num_slots, whose cache stays on the devices",
  ):  # fmt: skip
    state, found = run.learner.update(state, run.reference, put, run.teacher)
    return state, mesh_lib.to_host(found)


def _one_update(run: Run, state, update: int, held):
  """Rollout, packing, learning; returns the state and named numbers."""
  started, waited = time.monotonic(), waits.took()
  part = _part(run, state, f"the rollouts of update {update}")
  with run.log.span(events.ROLLOUT, update), part:
    played = dynamic_sampling.play(run, update)
    trajectories = played.trajectories
    run.rollouts.record(trajectories, update)
  rolled = time.monotonic()
  whole = [t for t in played.batch if t.error is None]
  if not whole:
    raise RuntimeError(
      f"update {update}: all {len(trajectories)} episodes failed, the first "
      f"with {trajectories[0].error}"
    )
  # Once all have agreed on the batch none may leave the others in the update.
  together = held if run.hosts.count > 1 else contextlib.nullcontext
  part = _part(run, state, f"update {update}")
  with run.log.span(events.UPDATE, update), together(), part:
    packed = run.pack(whole, update)
    teacher_rows, left_out = run.pack_peers(whole, packed)
    kill_points.passed("update: packed")
    run.hosts.agree(f"the batch of update {update}", packing.digest(packed))
    prompts = run.pack_prompts(packed)
    put = learner_state.put_batch(packed, run.mesh, teacher_rows, prompts)
    credit.record(run, run.folder, state, put, packed, update)
    # Told where somebody else waits for the learner: it may take its time.
    with waits.on(waits.LEARNER, "devices", f"update {update}", counts=False):
      state, found = _learn(run, state, put, update)
      pairs, plain = learner_state.split_metrics(found)
    # Before anything is handed over or saved.
    learner_state.check_finite(pairs, update)
  kill_points.passed("update: learned")
  learned = time.monotonic()
  with run.log.span(events.WEIGHTS, update):
    _hand_over(run, state, update + 1)
  kill_points.passed("update: handed over")
  mean = metrics.Mean()
  mean.add({f"rollout/{k}": v for k, v in counts.summary(trajectories).items()})
  if ahead := run.config.rollout.staleness > 0:
    behind = counts.staleness(whole, update)
    behind["discarded"] = (float(run.rollouts.discarded), 1.0)
    mean.add({f"rollout/{k}": v for k, v in behind.items()})
  mean.add(pairs)
  result = mean.result() | plain | left_out | played.metrics
  if "critic/unexplained_variance" in result:
    unexplained = result["critic/unexplained_variance"]
    result["critic/explained_variance"] = 1.0 - unexplained
  engine = run.players.engine
  result |= {
    "compiles/sampler": engine.compiles,
    "compiles/learner": run.learner.compiles,
  }
  times = speeds.Times(started, rolled, learned)
  if ahead:
    result |= speeds.of_waits(waited, waits.took())
  return state, (
    result
    | speeds.of_update(times, packed, trajectories, ahead=ahead)
    | speeds.of_sampler(played.counted, engine.num_slots, packed)
  )
