"""The episodes of an update, with DAPO's dynamic sampling of groups if wanted.

A group whose episodes are all paid alike has an advantage of 0 everywhere: it
costs as much as any other and teaches nothing. With
`dynamic_sampling.max_rounds` an update goes on playing fresh tasks until it has
as many groups that differ as it has tasks, or the rounds are used up.

Everything follows from the seed and from what was played, so that a run that
goes on after a kill decides the same: a round that has ended is found in its
journal, and all processes come to the same groups.

Source: Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.2.
"""

import functools
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.envs import base
from steppo_jax.learner import dynamic_sampling
from steppo_jax.packing import checks
from steppo_jax.packing import rows as packing
from steppo_jax.training.run import Learning, Run

_unequal = functools.partial(
  jax.jit, static_argnames=("algorithm", "bootstrap")
)(dynamic_sampling.unequal_groups)


class Played(NamedTuple):
  """What was played for an update.

  Attributes:
    batch: Trajectories to train on, group by group in the order of playing.
    trajectories: All that were played.
    counted: What the samplers did for them: the sums of their counters.
    metrics: How many groups were played, kept and dropped; empty where groups
      are not looked at.
  """

  batch: list[types.Trajectory]
  trajectories: list[types.Trajectory]
  counted: dict[str, int]
  metrics: dict[str, int]


def play(run: Run, update: int) -> Played:
  """Plays the episodes of an update, in as many rounds as it takes.

  A further round has as many tasks as should be enough, going by the share of
  groups that differed so far, and at most `tasks_per_update`.

  Args:
    run: The run, whose sampler holds the weights of the update.
    update: Number of updates done.

  Raises:
    RuntimeError: fewer groups differ than `dynamic_sampling.min_groups`, or the
      journal cannot be written.
  """
  config = run.config
  options, wanted = config.dynamic_sampling, config.tasks_per_update
  found, counted = run.rollouts.play(update, run.episodes(update))
  if options.max_rounds is None:
    return Played(found, found, counted, {})
  played, rounds = list(found), 1
  unequal = _judge(run, update, rounds, found)
  while sum(unequal) < wanted and rounds < options.max_rounds:
    missing = wanted - sum(unequal)
    share = max(sum(unequal), 1) / len(unequal)
    tasks = fresh_tasks(
      run.tasks,
      min(wanted, math.ceil(missing / share)),
      seed=config.seed,
      update=update,
      round_=rounds,
      seen={one.task.uid for one in played},
    )
    if not tasks:
      break
    episodes = run.episodes(update, tasks=tasks, first=len(unequal))
    found, more = run.rollouts.play(update, episodes, round_=rounds)
    rounds += 1
    played += found
    unequal += _judge(run, update, rounds, found)
    counted = {name: counted[name] + more[name] for name in counted}
  chosen = choose(unequal, wanted)
  filled = sum(not unequal[g] for g in chosen)
  _check_enough(options.min_groups, update, rounds, unequal, chosen)
  return Played(
    _of_groups(played, chosen, config.group_size),
    played,
    counted,
    {
      "dynamic_sampling/rounds": rounds,
      "dynamic_sampling/groups": len(unequal),
      "dynamic_sampling/equal": len(unequal) - sum(unequal),
      "dynamic_sampling/dropped": len(unequal) - len(chosen),
      "dynamic_sampling/filled": filled,
    },
  )


def trained_on(
  learning: Learning, update: int, rounds: Sequence[Sequence[types.Trajectory]]
) -> list[types.Trajectory]:
  """Which of the episodes that were played for an update it was trained on.

  Args:
    learning: The half of the run that learns.
    update: Number of updates done.
    rounds: The episodes of each round, in the order of playing.
  """
  config = learning.config
  played = [one for found in rounds for one in found]
  if config.dynamic_sampling.max_rounds is None:
    return played
  unequal = [
    flag
    for round_, found in enumerate(rounds, 1)
    for flag in _judge(learning, update, round_, found)
  ]
  chosen = choose(unequal, config.tasks_per_update)
  return _of_groups(played, chosen, config.group_size)


def _of_groups(played, chosen, size: int) -> list[types.Trajectory]:
  """The episodes of some groups."""
  return [one for g in chosen for one in played[g * size : (g + 1) * size]]


def choose(unequal: Sequence[bool], wanted: int) -> list[int]:
  """Numbers of the groups to train on, ascending.

  Args:
    unequal: Of each group in the order of playing, whether its rewards differ.
    wanted: At most so many groups: the first that differ and, if they are too
      few, the first of the others.
  """
  order = sorted(range(len(unequal)), key=lambda g: not unequal[g])
  return sorted(order[:wanted])


def fresh_tasks(
  tasks: base.TaskList,
  count: int,
  *,
  seed: int,
  update: int,
  round_: int,
  seen: Collection[str],
) -> list[types.Task]:
  """At most `count` tasks for a further round, none that was played before.

  Args:
    tasks: The training tasks.
    count: How many are asked for. A list that holds few tasks may give fewer.
    seed: Of the run.
    update: Number of updates done.
    round_: Rounds that were played.
    seen: Uids of the tasks of this update's earlier rounds.
  """
  drawn = np.random.SeedSequence([seed, update, round_]).generate_state(1)
  # Within 31 bits, which any task list can take for a seed.
  found = tasks.sample(count, seed=int(drawn[0] >> 1), update=update)
  by_uid = {task.uid: task for task in found if task.uid not in seen}
  return list(by_uid.values())


def _judge(run: Learning, update: int, round_: int, trajectories) -> list[bool]:
  """Of each group, whether its rewards differ; the same in all processes."""
  config = run.config
  whole = [one for one in trajectories if one.error is None]
  if config.packing.too_long == "truncate":
    kept, _ = checks.fit(whole, config.packing.row_length)
    whole = [one for one in kept if one is not None]
  differs = {}
  if whole:
    most = config.tasks_per_update * config.group_size
    flags = _unequal(
      # Of one shape whatever was played, so that it compiles once.
      packing.step_table(whole, num_steps=most * config.rollout.max_steps + 1),
      algorithm=config.algorithm.row(),
      bootstrap=config.learner.bootstrap,
    )
    numbers = dict.fromkeys(one.task.uid for one in whole)
    differs = dict(zip(numbers, np.asarray(flags).tolist(), strict=False))
  found = [
    differs.get(one.task.uid, False)
    for one in trajectories[:: config.group_size]
  ]
  run.hosts.agree(f"the groups of update {update}, round {round_}", found)
  return found


def _check_enough(least, update, rounds, unequal, chosen) -> None:
  """Refuses to go on with a batch that is short of groups that differ."""
  count = sum(unequal[g] for g in chosen)
  if count < (least or 0):
    raise RuntimeError(
      f"update {update}: rewards differ in {count} of {len(unequal)} groups of "
      f"{rounds} rounds, dynamic_sampling.min_groups={least}: raise "
      "dynamic_sampling.max_rounds or group_size, take tasks of which some "
      "are solved, or leave min_groups out"
    )
