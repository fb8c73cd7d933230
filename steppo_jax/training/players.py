"""What plays episodes: a sampler, environments, and prompts between them.

Training and evaluation play the same games with the same sampler, so that no
program is compiled twice and the worker processes of the environments are
started once. What they share is a `Players`, made from the options by `make`;
what differs, which episodes are played and at which temperature, is told to
`Players.play`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from steppo_jax import types
from steppo_jax.datasets import tasks as datasets_tasks
from steppo_jax.envs import base
from steppo_jax.envs.workers import pool
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import options as model_options
from steppo_jax.models import transformer
from steppo_jax.pretrained import policy, sources
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.prompts import base as prompt_base
from steppo_jax.prompts import sections
from steppo_jax.rollout import loop, options
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.training import config as config_lib


def load_model(
  config: config_lib.RunConfig,
  tokenizer: types.Tokenizer,
  placement: Any = None,
  *,
  trained: bool = False,
) -> tuple[transformer.ModelConfig, dict[str, Any]]:
  """The starting policy of a run, computed as the run's options say.

  What is not trained stays in the type that it is stored in if everything is
  computed in bfloat16: each product takes its matrix in that type anyway, so
  that the numbers are the same and take half of the memory.

  Args:
    config: The run's options.
    tokenizer: That of the weights.
    placement: See `pretrained.policy.load_policy`.
    trained: Whether a run trains the parameters themselves, unless the weights
      are adapters.

  Returns:
    Sizes of the decoder and its parameters, in float32 where they are trained.

  Raises:
    ValueError: see `pretrained.policy.load_policy`.
  """
  if trained:
    found = sources.find(config.weights, base=config.base)
    trained = found.kind != "adapter"
  stored = config.compute == "bfloat16" and not trained
  model, params = policy.load_policy(
    config.weights, tokenizer, config.base, placement,
    dtype=None if stored else jnp.float32,
  )  # fmt: skip
  options = {"compute": config.compute, "remat": config.remat}
  given = {name: v for name, v in options.items() if v is not None}
  return dataclasses.replace(model, **given), params


def recipes(env_config: config_lib.EnvConfig) -> base.Recipes:
  """How the environment and its task lists are made.

  Raises:
    ValueError: an option that the environment does not have, or that it needs.
  """
  own = base.parse_options(env_config.options)
  names = ("name", "size", "data_dir", "invalid_penalty")
  common = {name: getattr(env_config, name) for name in names}
  if env_config.task_set is None:
    return base.resolve(env_config.name, common, own)
  return datasets_tasks.recipes(
    env_config.task_set, env_config.name, common, own
  )


def make_tasks(env_config: config_lib.EnvConfig) -> base.TaskList:
  """The task lists that the options name.

  Raises:
    ValueError: an option is missing or does not fit, such as ALFWorld without
      its folder, or an unknown size.
  """
  return recipes(env_config).tasks.make()


def panel(
  tasks: base.TaskList, env: str, split: str, count: int
) -> list[types.Task]:
  """At most `count` tasks of a split to evaluate on.

  Raises:
    ValueError: tasks are wanted, and the split of that environment has none.
  """
  found = tasks.panel(split, count)
  if count and not found:
    raise ValueError(
      f"split {split!r} of {env} holds no task: choose another evaluation.split"
    )
  return found


def make_env(env_config: config_lib.EnvConfig) -> base.Makers:
  """What makes environments, in this process or in workers; to be closed.

  Raises:
    ValueError: see `recipes`.
  """
  recipe = recipes(env_config).env
  at_once = recipe.at_once()
  if env_config.workers:
    count = min(env_config.workers, at_once or env_config.workers)
    return pool.Workers(recipe, count, env_config.limits, env_config.python)
  return base.InProcess(recipe, at_once)


@dataclasses.dataclass(frozen=True)
class Players:
  """Everything that playing an episode takes, but the episode.

  It is a context: leaving it, or `close`, ends the environments' workers.

  Attributes:
    engine: The sampler. Whoever plays gives it weights first.
    prompt: Builds prompts from observations.
    make_env: Makes environments, and owns the workers that they live in.
    rollout: Limits of an episode; its `max_live` is never above the number of
      environments that `make_env` can have at once.
    hosts: The processes of the run, among which callers share episodes.
    waiting: Makes a context around every wait for environments, which is how
      the event log learns of the time.
  """

  engine: types.Engine
  prompt: prompt_base.Prompt
  make_env: base.Makers
  rollout: options.RolloutConfig
  hosts: hosts_lib.Hosts
  waiting: Callable[[], contextlib.AbstractContextManager]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Ends the environments' workers, and the engine, wherever it is."""
    self.make_env.close()
    # An engine that somebody brings need not have anything to close.
    getattr(self.engine, "close", lambda: None)()

  def claim(
    self,
    update: int,
    episodes: Sequence[loop.Episode],
    done: Sequence[types.Trajectory],
  ) -> Sequence[types.Trajectory]:
    """The records as they are: nobody else has them. See `AgentPlayers`."""
    return done

  def settle(self, needed_from: float) -> None:
    """Nothing to do: what was played is nowhere but in the journal."""

  def play(
    self,
    episodes: Iterable[loop.Episode],
    *,
    temperature: float | None = None,
    on_finish: Callable[[types.Trajectory], None] | None = None,
  ) -> list[types.Trajectory]:
    """Plays episodes in this process, with the weights the engine holds.

    Args:
      episodes: What to play: with several processes, this one's share.
      temperature: Of the softmax that is sampled from, 0 for greedy play; None
        for the temperature of `rollout`, which is that of training.
      on_finish: Called with each trajectory when it ends.

    Returns:
      Trajectories in the order of `episodes`; see `loop.run` for errors.
    """
    limits = self.rollout
    if temperature is not None:
      limits = dataclasses.replace(limits, temperature=temperature)
    return loop.run(
      self.engine,
      self.make_env,
      episodes,
      self.prompt,
      limits,
      on_finish=on_finish,
      waiting=self.waiting,
    )

  def play_from(
    self,
    feed: loop.Feed,
    on_finish: Callable[[types.Trajectory], None],
  ) -> None:
    """Plays the episodes of a feed, which hands newer weights over meanwhile.

    Args:
      feed: Gives episodes and weights, until it has ended.
      on_finish: Called with each trajectory when it ends.
    """
    loop.run_from(
      self.engine, self.make_env, feed, self.prompt, self.rollout, on_finish
    )


def _make_engine(config, model, tokenizer, hosts) -> types.Engine:
  """The sampler that the options describe, in this process or elsewhere."""
  rollout = config.rollout
  if rollout.engine == "http":
    from steppo_jax.training import remote  # It needs JAX and HTTP alone.

    return remote.make(config, model, tokenizer, hosts)
  # A supervised run splits no model, and plays on all devices.
  mesh = getattr(config, "mesh", model_options.MeshConfig())
  return engine_lib.SlotEngine(
    model,
    config.sampler,
    context=rollout.max_tokens,
    max_new_tokens=rollout.max_new_tokens,
    end_of_turn_id=tokenizer.end_of_turn_id,
    seed=config.seed,
    devices=mesh_lib.rollout_devices(mesh),
  )


def make_prompt(
  config: config_lib.RunConfig | config_lib.SupervisedRun,
  tokenizer: types.Tokenizer,
) -> prompt_base.Prompt:
  """What builds prompts where a run plays its environment itself.

  Raises:
    ValueError: see `prompts.sections.make`.
  """
  return sections.make(config.prompt, tokenizer, config.env.name)


def make(
  config: config_lib.RunConfig | config_lib.SupervisedRun,
  model: transformer.ModelConfig,
  tokenizer: types.Tokenizer,
  *,
  hosts: hosts_lib.Hosts = hosts_lib.ALONE,
  waiting: Callable[[], contextlib.AbstractContextManager] = (
    contextlib.nullcontext
  ),
  pool: pathlib.Path | None = None,
) -> Any:
  """The players that the options describe, with an engine of their own.

  Args:
    config: The options of a run.
    model: Sizes of the decoder that will be sampled from.
    tokenizer: The tokenizer of its weights.
    hosts: See `Players`.
    waiting: See `Players`.
    pool: File of the episodes of agents; None for one that is gone afterwards.

  Returns:
    `Players`, or `agents.AgentPlayers`, which have the same methods.

  Raises:
    ValueError: an option of the environment or the prompt does not fit.
  """
  rollout = config.rollout
  other = [
    f"rollout.{name}={value}"
    for name, value, usual in (
      ("source", rollout.source, "env"), ("engine", rollout.engine, "internal"),
    )
    if value != usual
  ]  # fmt: skip
  if other and not isinstance(config, config_lib.RunConfig):
    raise ValueError(f"{other[0]} is for reinforcement learning")
  if len(other) > 1:
    raise ValueError(
      f"{other[0]} has a gateway, which samples in this process: leave "
      f"{other[1]} out"
    )
  engine = _make_engine(config, model, tokenizer, hosts)
  if rollout.source != "env":
    # A server is needed by these runs alone.
    from steppo_jax.training import agents

    return agents.AgentPlayers(
      config, engine, tokenizer, pool=pool, hosts=hosts, waiting=waiting
    )
  prompt = make_prompt(config, tokenizer)
  # Made last: nothing that fails after it could leave workers behind.
  envs = make_env(config.env)
  at_once = [n for n in (rollout.max_live, envs.at_once) if n]
  if at_once:
    rollout = dataclasses.replace(rollout, max_live=min(at_once))
  return Players(engine, prompt, envs, rollout, hosts, waiting)
