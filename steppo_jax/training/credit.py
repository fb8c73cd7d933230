"""What an update made of its episodes: computed again, or recorded.

A run with `record_credit` writes the numbers of an update just before it is
taken. Of any other run they are computed when somebody asks: the episodes are
read from the journals of the update or from the recorded trajectories, the
weights from the checkpoint that it began with, and `learner.explain` runs what
the learner ran.
"""

import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.datasets import trajectories as trajectories_lib
from steppo_jax.learner import explain
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models.options import MeshConfig
from steppo_jax.packing import rows as packing
from steppo_jax.rollout import journal as journal_lib
from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_episodes
from steppo_jax.storage import checkpoint
from steppo_jax.storage import credit as credit_files
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import config as config_lib
from steppo_jax.training import dynamic_sampling
from steppo_jax.training.run import Learning

_log = logging.getLogger(__name__)

# Steps of the work on one update: episodes, weights, numbers, file.
_STAGES = 4


def compute(
  folder: str | os.PathLike,
  updates: Sequence[int],
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[credit_files.Credit]:
  """Computes the credit of updates of a run, and writes it into its folder.

  The run is only read, but for its folder `credit`; it may go on meanwhile.

  Args:
    folder: The run's folder.
    updates: Their numbers; the first update of a run is 0.
    on_progress: Called with the work done and all the work there is.

  Yields:
    What was written for each, in the order of `updates`.

  Raises:
    ValueError: the folder is not of such a run, or an update's episodes are not
      kept.
    RuntimeError: a file cannot be written, or the weights are gone.
  """
  folder = pathlib.Path(folder)
  config = run_config(folder)
  total, done = 1 + _STAGES * len(updates), 0

  def step():
    nonlocal done
    done += 1
    on_progress(done, total)

  # What is missing is told before anything is loaded.
  for update in updates:
    _check_update(folder, config, update)
  learning = Learning(config, mesh=_mesh(config))
  start = learning.start()
  step()
  path = folder / run_folder.CHECKPOINTS_NAME
  with checkpoint.Checkpoints(path, config.keep_checkpoints) as store:
    for update in updates:
      trained = trained_on(learning, folder, update)
      step()
      state, number = _weights(store, start, update)
      step()
      packed = learning.pack(trained, update)
      peers, _ = learning.pack_peers(trained, packed)
      prompts = learning.pack_prompts(packed)
      batch = learner_state.put_batch(packed, learning.mesh, peers, prompts)
      found = of_batch(learning, state, batch, packed, update, number)
      step()
      credit_files.write(credit_files.path_of(folder, update), found)
      step()
      yield found


def run_config(folder: pathlib.Path) -> config_lib.RunConfig:
  """The options of a run of reinforcement learning.

  Raises:
    ValueError: the folder holds none.
  """
  file = folder / run_folder.CONFIG_NAME
  if not file.is_file():
    raise ValueError(f"{folder} is not the folder of a run: {file} is missing")
  try:
    return config_lib.from_json(config_lib.RunConfig, file.read_text())
  except ValueError as error:
    raise ValueError(
      f"{file} does not hold the options of reinforcement learning: {error}"
    ) from error


def _mesh(config: config_lib.RunConfig) -> jax.sharding.Mesh:
  """The devices of the run where they are here too, else one."""
  try:
    return mesh_lib.of_run(config.mesh, config.num_devices)
  except ValueError:
    return mesh_lib.of_run(MeshConfig(), 1)


def of_batch(
  learning: Learning,
  state: learner_state.LearnerState,
  batch: learner_state.Batch,
  packed: packing.Packed,
  update: int,
  checkpoint_update: int,
) -> credit_files.Credit:
  """The credit of a batch under a state of the learner.

  Args:
    learning: The half of the run that learns.
    state: State before the update; it is not donated.
    batch: The batch on the devices.
    packed: The same on the host.
    update: Number of updates done.
    checkpoint_update: Updates behind the weights of `state`.
  """
  found = mesh_lib.to_host(
    learning.learner.explain(state, learning.reference, batch, learning.teacher)
  )
  return _to_file(
    explain.Explained(*map(np.asarray, found)),
    packed,
    update=update,
    checkpoint_update=checkpoint_update,
    algorithm=learning.config.algorithm.name,
  )


def _to_file(found: explain.Explained, packed, **facts) -> credit_files.Credit:
  """Numbers of slots and rows in the order of episodes and responses."""
  episodes = packed.trajectories
  steps = [step for one in episodes for step in one.steps]
  masks = [np.asarray(step.response_mask, bool) for step in steps]
  sampled = np.concatenate([np.zeros(0, bool), *masks])
  ids = packed.tokens.step_ids.reshape(-1)
  # Tokens of a step stand in order; a stable sort brings the steps in theirs.
  order = np.argsort(ids, kind="stable")[np.count_nonzero(ids == 0) :]

  def of_tokens(x_t):
    out = np.full(len(sampled), np.nan, np.float32)
    out[sampled] = x_t.reshape(-1)[order]
    return out

  offsets = lambda counts: np.cumsum([0, *counts], dtype=np.int64)
  live = slice(1, 1 + len(steps))  # Slot 0 is the null step.
  return credit_files.Credit(
    episodes=tuple(one.uid for one in episodes),
    first_step=offsets(len(one.steps) for one in episodes),
    first_token=offsets(map(len, masks)),
    **{
      name: getattr(found, f"{name}_k")[live] for name in credit_files.OF_STEPS
    },
    logp=of_tokens(found.logp_t),
    behaviour_logp=of_tokens(packed.tokens.behaviour_logp),
    ratio_t=of_tokens(found.ratio_t),
    entropy=of_tokens(found.entropy_t),
    advantage_t=of_tokens(found.advantage_t),
    clipped=of_tokens(found.clipped_t),
    teacher_gap=of_tokens(found.teacher_gap_t),
    **facts,
  )


def _weights(store: checkpoint.Checkpoints, start, update: int):
  """The state that an update began with, or the nearest that is kept.

  Returns:
    The state, as of the update, and the updates behind its weights.
  """
  # Before the first update there is no checkpoint: those are the run's weights.
  kept = sorted({0, *store.finished()}, key=lambda u: (abs(u - update), u))
  for number in kept:
    if number == 0:
      state = start
      break
    try:
      state, _ = store.restore(number, start)
      break
    except RuntimeError as error:  # Damaged, or removed by the run meanwhile.
      _log.warning("%s; the next nearest is taken", error)
  # Annealing and staleness go by the number of the update.
  return state.replace(update=state.update * 0 + update), number


def _check_update(folder, config, update: int) -> None:
  """Refuses an update of which no episodes are kept."""
  if update < 0 or update >= config.num_updates:
    raise ValueError(
      f"update {update} is none of this run: its {config.num_updates} updates "
      f"are numbered from 0 to {config.num_updates - 1}"
    )
  if _rounds(folder, update) or _recorded(folder, config, update):
    return
  kept = sorted({int(m[1]) for m in map(_NAME.fullmatch, _names(folder)) if m})
  there = f"; there are journals of {_ranges(kept)}" if kept else ""
  raise ValueError(
    f"the episodes of update {update} are not kept in {folder}{there}. A run "
    f"keeps them with keep_journals={config.num_updates}, with record_every=1 "
    "as datasets, and their credit with record_credit=1"
  )


def _ranges(numbers: Sequence[int]) -> str:
  """Ascending numbers as text, such as "updates 0 to 2, 7"."""
  runs: list[list[int]] = []
  for number in numbers:
    if runs and number == runs[-1][-1] + 1:
      runs[-1].append(number)
    else:
      runs.append([number])
  parts = [
    f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs
  ]
  return f"updates {', '.join(parts)}"


_NAME = re.compile(r"(\d+)-(\d+)(?:-(\d+))?\.journal")


def _names(folder: pathlib.Path) -> list[str]:
  journals = folder / run_folder.JOURNALS_NAME
  return sorted(p.name for p in journals.glob("*.journal"))


def _rounds(folder: pathlib.Path, update: int) -> dict[int, list[pathlib.Path]]:
  """The journals of an update by round of dynamic sampling."""
  found: dict[int, list[pathlib.Path]] = {}
  for name in _names(folder):
    match = _NAME.fullmatch(name)
    if match and int(match[1]) == update:
      path = folder / run_folder.JOURNALS_NAME / name
      found.setdefault(int(match[3] or 0), []).append(path)
  return dict(sorted(found.items()))


def _recorded(folder: pathlib.Path, config, update: int) -> pathlib.Path | None:
  """The dataset of an update's episodes, if it can be read back."""
  if config.record_format == "atif":
    return None
  path = trajectories_lib.folder_of(
    folder / "data", f"update{update}", config.record_format
  )
  return path if path.is_dir() else None


def trained_on(
  learning: Learning, folder: pathlib.Path, update: int
) -> list[types.Trajectory]:
  """The episodes that an update was trained on, in their order.

  Raises:
    ValueError: they are not kept, or not all of them are there.
  """
  journals = _rounds(folder, update)
  if journals:
    rounds = [_read_round(paths, update) for paths in journals.values()]
  else:
    path = _recorded(folder, learning.config, update)
    digest = learning.tokenizer.digest
    rounds = [list(trajectories_lib.load(path, "train", tokenizer=digest))]
    _check_rounds(learning.config, update)
  _check_complete(learning.config, update, rounds)
  pool = folder / run_folder.POOL_NAME
  if pool.is_file():
    with pool_lib.Pool(pool) as opened:
      rounds = [pool_episodes.judged(opened, of) for of in rounds]
  found = dynamic_sampling.trained_on(learning, update, rounds)
  whole = [one for one in found if one.error is None]
  if not whole:
    raise ValueError(f"update {update}: all its episodes failed")
  return whole


def _read_round(paths: Sequence[pathlib.Path], update: int):
  """The episodes of one round, played by one or several processes."""
  found: dict[str, types.Trajectory] = {}
  for path in paths:
    contents = journal_lib.read(path)
    if contents.end is None:
      raise ValueError(
        f"{path} is not finished: update {update} is still being played, or "
        "the run was stopped within it; let the run go on"
      )
    missing = [
      uid
      for uid in contents.belongs["episodes"]
      if uid not in contents.trajectories
    ]
    if missing:
      raise ValueError(f"{path} is damaged: it lacks episodes {missing[:5]}")
    found |= contents.trajectories
  # Group by group, as they are named: update, group, number in the group.
  place = lambda uid: tuple(map(int, uid.split("-")))
  return [found[uid] for uid in sorted(found, key=place)]


def _check_rounds(config, update: int) -> None:
  """Refuses a dataset that does not say which round an episode is of."""
  if (config.dynamic_sampling.max_rounds or 1) > 1:
    raise ValueError(
      f"update {update} was recorded with dynamic sampling, whose rounds only "
      f"the journals tell: run with keep_journals={config.num_updates}"
    )


def _check_complete(config, update: int, rounds) -> None:
  """Refuses an update of which the share of a process is missing."""
  size = config.group_size
  uids = [one.uid for found in rounds for one in found]
  wanted = [f"{update}-{i // size}-{i % size}" for i in range(len(uids))]
  if uids != wanted or not uids:
    missing = sorted(set(wanted) - set(uids))[:3]
    raise ValueError(
      f"update {update}: episodes such as {missing} are missing: the journals "
      "of all processes are needed, in one folder"
    )
  if len(rounds[0]) < config.tasks_per_update * size:
    _log.warning(
      "update %d has %d episodes here, the options say %d: either there are no "
      "more tasks, or the journal of a process is missing",
      *(update, len(rounds[0]), config.tasks_per_update * size),
    )


def record(
  learning: Learning,
  folder: pathlib.Path,
  state: learner_state.LearnerState,
  batch: learner_state.Batch,
  packed: packing.Packed,
  update: int,
) -> None:
  """Writes the credit of an update that is about to be taken, if it is due.

  All processes of a run compute it, and the first one writes.

  Raises:
    RuntimeError: the file cannot be written.
  """
  every = learning.config.record_credit
  if every is None or update % every:
    return
  found = of_batch(learning, state, batch, packed, update, update)
  if learning.hosts.is_first:
    credit_files.write(credit_files.path_of(folder, update), found)
