"""The parts of a run of reinforcement learning, made from its options."""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from steppo_jax import batch, types
from steppo_jax.algorithms import options as algorithm_options
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.learner import checks as learner_checks
from steppo_jax.learner import learner as learner_lib
from steppo_jax.learner import state as learner_state
from steppo_jax.models import lora, out_of_memory
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.packing import prompt_rows, teacher_rows
from steppo_jax.packing import rows as packing
from steppo_jax.pretrained import policy as pretrained_policy
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.processes import kill_points
from steppo_jax.rollout import loop
from steppo_jax.storage import events
from steppo_jax.storage import folder as run_folder
from steppo_jax.training import ahead, evaluate
from steppo_jax.training import config as config_lib
from steppo_jax.training import episodes as training_episodes
from steppo_jax.training import players as players_lib

_LOG = logging.getLogger(__name__)
# Purposes of keys: training episodes, mini-batches.
_EPISODES, _MINIBATCHES = 0, 1


class Learning:
  """The half of a run that learns: it plays nothing.

  Args:
    config: The options.
    hosts: The processes of the run.
    mesh: The devices of the learner; None for those of the options.

  Attributes:
    policy: What the weights hold that the options name; None once `start` has
      made the learner's state of it.
    reference: The same where an update reads it, on the learner's devices.
  """

  # Whether prompts extend each other; None where that is not known, as there
  # are no players. Batches then get the shape that they need.
  _append_only: bool | None = None

  def __init__(
    self,
    config: config_lib.RunConfig,
    hosts: hosts_lib.Hosts = hosts_lib.ALONE,
    mesh: jax.sharding.Mesh | None = None,
  ):
    config.check_training()
    self.config, self.hosts = config, hosts
    self.tokenizer = pretrained_policy.load_tokenizer(
      config.tokenizer, config.weights, config.base
    )
    self.mesh = mesh or mesh_lib.of_run(config.mesh, config.num_devices)
    learner_checks.check_rows(config.learner, self.mesh)  # Before the model.
    split = "fsdp" in self.mesh.shape
    self.model, self.policy = players_lib.load_model(
      config, self.tokenizer, mesh_lib.by_path(self.mesh) if split else None,
      trained=not config.learner.lora.rank,
    )  # fmt: skip
    row = config.algorithm.row()
    for name, where in config.algorithm.unread().items():
      _LOG.warning(
        "algorithm.%s=%s has no effect on %s: it has one where %s",
        name, getattr(config.algorithm, name), config.algorithm.name, where,
      )  # fmt: skip
    told = config.algorithm.teacher == algorithm_options.HINDSIGHT
    prompt = None
    if config.rollout.source == "env" and ("reasoning" in row.wants or told):
      # Asked before anything is compiled or played.
      prompt = players_lib.make_prompt(config, self.tokenizer)
    algorithms_table.check_needs(row, _provided(config, prompt))
    self._hints = _hints(config, self.tokenizer, prompt) if told else None
    _check_adapters(config, self.policy)
    # Fresh adapters off is the policy before training, without a copy of it.
    kept = row.reads_reference and not config.learner.lora.rank
    if hosts.count > 1:
      hosts.wait("the devices")
      mesh_lib.meet(self.mesh)
    self.reference = self._placed(self.policy if kept else None)
    if kept:
      # From where it lies now; the first device may hold it whole otherwise.
      self.policy = self.reference
    self.teacher = self._placed(
      _load_teacher(config, self.model, self.tokenizer)
    )
    self.learner = learner_lib.Learner(
      self.model,
      row,
      config.learner,
      self.mesh,
      num_updates=config.num_updates,
      seed=config.seed,
      temperature=config.rollout.temperature,
      staleness=config.rollout.staleness,
    )

  def start(self) -> learner_state.LearnerState:
    """The learner's state before the first update, in place of `policy`.

    A run needs the parameters that it began with no longer: they would take
    the devices' memory, or the host's, to its end. Where an update reads them
    `reference` has them.
    """
    policy, self.policy = self.policy, None
    if policy is None:
      raise RuntimeError("start was called before: it keeps no policy")
    with out_of_memory.explained(
      "making the learner's state, parameters and moments",
      "split it over more devices (mesh.fsdp)",
      "train adapters (learner.lora.rank)",
      "take an optimizer that holds less (learner.optimizer)",
    ):  # fmt: skip
      # An update takes the arrays of its state, and leaves the reference's.
      donate = self.reference is None
      state = self.learner.init(policy, donate=donate)
      return jax.block_until_ready(state)

  def _placed(self, policy: Any) -> Any:
    """Parameters that no update changes, where those that it changes are."""
    if policy is None or self.mesh.size == 1:
      return policy
    return mesh_lib.put(policy, mesh_lib.placements(self.mesh, policy))

  def pack(
    self, trajectories: Sequence[types.Trajectory], update: int
  ) -> packing.Packed:
    """Trajectories as device arrays, dealt to mini-batches at random."""
    config = self.config
    parts = config.learner.num_minibatches
    rng = np.random.default_rng([config.seed, _MINIBATCHES, update])
    shape = {}
    if self._is_sized:
      # The most that an update can need, so that it compiles once: unused rows
      # are never computed. A row holds at least one trajectory, or one prompt
      # where they do not extend each other.
      shape = {
        "num_steps": self._num_episodes * config.rollout.max_steps + 1,
        "rows_per_part": math.ceil(self._num_episodes / parts) * self._paths,
      }
    part = rng.permutation(len(trajectories)) % parts
    try:
      return packing.pack(
        trajectories,
        [int(p) for p in part],
        config.packing,
        num_parts=parts,
        rows_multiple=config.learner.microbatch_rows,
        pad_id=self.tokenizer.pad_id,
        vocab_size=self.model.vocab_size,
        reasoning="reasoning" in config.algorithm.row().wants,
        **shape,
      )
    except ValueError as error:
      raise ValueError(f"update {update}: {error}") from error

  def pack_peers(
    self, trajectories: Sequence[types.Trajectory], packed: packing.Packed
  ) -> tuple[batch.TeacherRows | None, dict[str, int]]:
    """What the policy reads as its own teacher, and who was left out."""
    config = self.config
    own = algorithm_options.PEER, algorithm_options.HINDSIGHT
    if config.algorithm.teacher not in own:
      return None, {}
    # What hints tell stands behind each prompt: no step extends another.
    paths = self._paths if self._hints is None else config.rollout.max_steps
    rows, left_out = teacher_rows.pack(
      trajectories,
      packed,
      config.packing,
      rows_multiple=config.learner.microbatch_rows,
      pad_id=self.tokenizer.pad_id,
      rows=self._num_episodes * paths if self._is_sized else None,
      hints=self._hints,
    )
    return rows, {"teacher/left_out": left_out}

  def pack_prompts(self, packed: packing.Packed) -> batch.PromptRows | None:
    """What the critic reads, where it need not read the whole batch."""
    row, learner = self.config.algorithm.row(), self.config.learner
    inside = row.critic != "step" or row.segment_share is not None
    if inside or learner.critic_reads == "all":
      return None
    return prompt_rows.pack(packed, pad_id=self.tokenizer.pad_id)

  @property
  def _is_sized(self) -> bool:
    """Whether all batches have one shape, which is known beforehand."""
    known = self._append_only is not None
    return known and self.config.packing.layout != "rows"

  @property
  def _num_episodes(self) -> int:
    return self.config.tasks_per_update * self.config.group_size

  @property
  def _paths(self) -> int:
    """Most rows that a trajectory can need."""
    return 1 if self._append_only else self.config.rollout.max_steps + 1


class Run(Learning):
  """Everything a run is made of, built before the first update.

  Args:
    config: The options.
    folder: Where results go.
    log: Takes in where the time goes.
    on_episode: Called with every training episode when it ends.
    hosts: The processes of the run.
    on_failure: Called with every episode that ends in an error, be it of
      training or of an evaluation.
  """

  def __init__(
    self,
    config: config_lib.RunConfig,
    folder: pathlib.Path,
    log: events.Log,
    on_episode: Callable[[types.Trajectory], None],
    hosts: hosts_lib.Hosts = hosts_lib.ALONE,
    on_failure: Callable[[types.Trajectory], None] = lambda _: None,
  ):
    super().__init__(config, hosts)
    self.log, self.folder = log, folder
    self.tasks = players_lib.make_tasks(config.env)
    panel = players_lib.panel(
      self.tasks, config.env.name,
      config.evaluation.split, config.evaluation.episodes,
    )  # fmt: skip
    self._on_failure = on_failure
    self._make_rollouts(functools.partial(self._told, on_episode))
    self._append_only = self.players.prompt.append_only
    self.evaluator = evaluate.Evaluator(
      self._judges, panel, config.evaluation.temperature
    )

  def _make_rollouts(self, told: Callable[[types.Trajectory], None]) -> None:
    """Makes what plays episodes: for the learner, and for evaluations."""
    config, folder = self.config, self.folder
    make = functools.partial(
      players_lib.make, config, self.model, self.tokenizer,
      hosts=self.hosts, pool=folder / run_folder.POOL_NAME,
    )  # fmt: skip
    if not config.rollout.staleness:
      self.players = self._judges = make(waiting=self.log.waiting)
      self.rollouts = training_episodes.Rollouts(
        config, folder, self.players, told
      )
      return
    # Rollouts go on while others play the panel, in a thread that the event log
    # knows nothing of. Servers hold the weights of rollouts, and no others.
    self.players = make(waiting=contextlib.nullcontext)
    here = dataclasses.replace(
      config,
      rollout=dataclasses.replace(config.rollout, engine="internal"),
      # A second gateway needs another port.
      agents=dataclasses.replace(config.agents, port=0),
    )
    self._judges = players_lib.make(
      here, self.model, self.tokenizer, hosts=self.hosts,
      waiting=self.log.waiting,
    )  # fmt: skip
    self.rollouts = ahead.Ahead(
      config, folder, self.players, told, self.episodes, self.log.note
    )

  def episodes(
    self,
    update: int,
    *,
    tasks: Sequence[types.Task] | None = None,
    first: int = 0,
  ) -> list[loop.Episode]:
    """The episodes of an update, a pure function of (seed, update).

    Args:
      update: Number of updates done.
      tasks: Tasks of a further round; None for those that the update begins
        with.
      first: Number of their first group in the update.
    """
    config = self.config
    if tasks is None:
      tasks = self.tasks.sample(
        config.tasks_per_update, seed=config.seed, update=update
      )
    if not tasks:
      raise ValueError(
        f"update {update}: env.name={config.env.name} has no task to train on"
      )
    return [
      loop.Episode(f"{update}-{g}-{j}", task, j, (_EPISODES, update, g, j))
      for g, task in enumerate(tasks, start=first)
      for j in range(config.group_size)
    ]

  def _told(self, then, trajectory: types.Trajectory) -> None:
    if trajectory.error is not None:
      self._on_failure(trajectory)
    if then is not None:
      then(trajectory)

  def hand_over(self, policy: Any, version: int) -> None:
    """Gives the sampler the weights that the learner has made.

    Adapters are merged, so that sampling takes no longer.
    """
    self.rollouts.set_policy(policy, version)
    self._handed = policy

  def held(self) -> dict[str, Any]:
    """What is on the devices beside the learner's state, by what it is."""
    held = {"reference": self.reference, "teacher": self.teacher}
    of = lambda engine: getattr(engine, "held", {}).items()
    held |= {f"sampler's {k}": v for k, v in of(self.players.engine)}
    held |= {f"sampler's {k}": v for k, v in self.rollouts.held().items()}
    if self._judges is not self.players:
      held |= {f"evaluations' {k}": v for k, v in of(self._judges.engine)}
    return held

  def close(self) -> None:
    """Ends rollouts that go on, and the environments' workers.

    What the devices held for playing and learning is gone, but for the
    learner's state.
    """
    self.rollouts.close()
    self.players.close()
    if self._judges is not self.players:
      self._judges.close()
    self._handed = self.reference = self.teacher = None

  def evaluate(self, update: int, policy: Any = None) -> dict[str, Any]:
    """Plays the panel, with the weights that were handed over last.

    Args:
      update: Number of updates done.
      policy: Parameters to play with instead. Rollouts never see them: they
        are handed what they had again, or have a sampler of their own.
    """
    own = self._judges is not self.players
    with self.log.span(events.EVALUATION, update):
      if own:
        judged = self._handed if policy is None else policy
        self._judges.engine.set_params(judged, update)
      elif policy is not None:
        self.rollouts.set_policy(policy, update)
      found, played = self.evaluator(
        on_finish=functools.partial(self._told, None)
      )
      if policy is not None and not own:
        self.rollouts.set_policy(self._handed, update)
    if played and all(t.error is not None for t in played):
      raise RuntimeError(
        f"evaluation after update {update}: all {len(played)} episodes failed, "
        f"the first with {played[0].error}"
      )
    kill_points.passed("evaluation: played")
    return found | {"eval/panel": evaluate.panel_hash(self.evaluator.tasks)}


def _provided(config: config_lib.RunConfig, prompt: Any) -> set[str]:
  """What this trainer offers to an algorithm; `prompt` None if not asked."""
  groups = {"group", "anchor"} if config.group_size > 1 else set()
  teacher = {"teacher"} if config.algorithm.teacher else set()
  always = {"critic", "reference", "entropy"}
  # The gateway marks thoughts of whatever agents were answered.
  marks = prompt is None or hasattr(prompt, "reasoning")
  return always | groups | teacher | ({"reasoning"} if marks else set())


def _hints(config: config_lib.RunConfig, tokenizer, prompt: Any):
  """What a teacher is told behind prompts, for `algorithm.teacher=hindsight`.

  Raises:
    ValueError: prompts are those of agents, or end in no one way.
  """
  generation = None
  if prompt is not None:
    generation = getattr(prompt, "generation_ids", ())
  if generation is None:
    raise ValueError(
      "algorithm.teacher=hindsight tells the teacher how an episode ended "
      "before an answer begins, and where that is in prompts of rollout.source="
      f"{config.rollout.source} with prompt.layout={config.prompt.layout} is "
      "not known: take algorithm.teacher=peer"
    )
  return teacher_rows.make_hints(tokenizer, generation)


def _check_adapters(config: config_lib.RunConfig, policy: Any) -> None:
  """Refuses adapters beside those that the weights bring."""
  if lora.has(policy) and config.learner.lora.rank:
    raise ValueError(
      f"weights={config.weights} brings adapters, which are trained on: "
      f"leave learner.lora.rank={config.learner.lora.rank} out, or merge "
      "them with `python -m steppo_jax convert` first"
    )


def _load_teacher(config: config_lib.RunConfig, model, tokenizer):
  """Parameters of a teacher with weights of its own, None without one."""
  path = config.algorithm.teacher_file
  if path is None:
    return None
  if not pathlib.Path(path).is_file():
    raise ValueError(
      f"algorithm.teacher={path} is neither {algorithm_options.PEER!r} nor a "
      f"file of weights, nor {algorithm_options.HINDSIGHT!r}"
    )
  sizes, params = pretrained_policy.load_policy(path, tokenizer)
  if sizes != model:
    raise ValueError(
      f"algorithm.teacher={path} holds {sizes}, the policy is {model}: they "
      "must have the same sizes"
    )
  return params
