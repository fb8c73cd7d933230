"""The learner: its state and one jitted update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from steppo_jax.algorithms import table
from steppo_jax.algorithms.table import Algorithm
from steppo_jax.learner import checks, explain, optimizers
from steppo_jax.learner import memory as memory_lib
from steppo_jax.learner import update as update_lib
from steppo_jax.learner.options import LearnerConfig
from steppo_jax.learner.spec import Model, UpdateSpec
from steppo_jax.learner.state import Batch, LearnerState
from steppo_jax.models import heads, lora, transformer
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.ops import floats

# Purposes of the keys that draw adapters; those of updates count from 0.
_ADAPTERS = 2**31
_CRITIC_ADAPTERS = 2**31 + 1


def make_spec(
  model: transformer.ModelConfig | Model,
  algorithm: Algorithm,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh,
  *,
  num_updates: int,
  seed: chex.Numeric,
  temperature: float = 1.0,
  differentiable: bool = False,
  staleness: int = 0,
) -> UpdateSpec:
  """What `learner.update.update` is made of.

  Called inside a traced function it takes traced scalars for the seed, for the
  rates of `config` and for the numbers of `algorithm`:

    def run(seed, discount, rate):
      spec = make_spec(
        model, replace(row, discount=discount),
        replace(config, learning_rate=rate), mesh, num_updates=1, seed=seed)
      return update.update(spec, init(spec, policy), None, batch)

    states, metrics = jax.jit(jax.vmap(run))(seeds, discounts, rates)

  Args:
    model: Sizes of our decoder, or a `learner.spec.Model` of one's own.
    algorithm: Row of the table.
    config: The options.
    mesh: Devices that rows are split over.
    num_updates: Length of the run, for the decay of the learning rates.
    seed: Root of the order of mini-batches.
    temperature: Of the softmax that sampled, above 0; not traced. Not read by a
      model of one's own.
    differentiable: See `learner.spec.UpdateSpec`.
    staleness: See `learner.spec.UpdateSpec`.

  Raises:
    ValueError: the microbatch cannot be split over the devices, the temperature
      is 0, the optimizer does not go with the model or with `differentiable`,
      or the row names a function that is not there.
  """
  checks.check_spec(model, algorithm, config, mesh, temperature, differentiable)
  steps = config.num_minibatches * num_updates
  warmup = config.critic_warmup if algorithm.critic else 0
  # Adam's square root has no derivative where a gradient is always 0.
  root = 1e-16 if differentiable else 0.0
  return UpdateSpec(
    model,
    algorithm,
    config,
    optimizers.make(
      config.learning_rate,
      config.warmup_steps,
      config,
      config.actor_epochs * config.num_minibatches * (num_updates - warmup),
      eps_root=root,
    ),
    optimizers.make(
      config.critic_learning_rate,
      config.critic_warmup_steps,
      config,
      config.critic_epochs * steps,
      eps_root=root,
    ),
    mesh,
    seed,
    temperature,
    differentiable,
    staleness,
  )


def make_parts(
  model: transformer.ModelConfig | Model,
  algorithm: Algorithm | str,
  config: LearnerConfig | None = None,
  *,
  num_updates: int = 1,
  seed: chex.Numeric = 0,
  **options: Any,
) -> UpdateSpec:
  """`make_spec` on one device, by names and with defaults: for research.

  Args:
    model: See `make_spec`.
    algorithm: A row of the table, or its name.
    config: The learner's options; None for the defaults.
    num_updates: See `make_spec`.
    seed: See `make_spec`.
    **options: See `make_spec`: temperature, differentiable.

  Raises:
    ValueError: see `make_spec`, or an unknown name.
  """
  row = table.get(algorithm) if isinstance(algorithm, str) else algorithm
  return make_spec(
    model, row, config or LearnerConfig(), mesh_lib.make_mesh(1),
    num_updates=num_updates, seed=seed, **options,
  )  # fmt: skip


def init(
  spec: UpdateSpec,
  policy: chex.ArrayTree,
  critic: chex.ArrayTree | None = None,
) -> LearnerState:
  """State before the first update, from copies of the policy's parameters.

  Adapters that the options ask for are added; those that the policy brings are
  trained on.

  Args:
    spec: What the update is made of.
    policy: Parameters of the policy.
    critic: Those of the critic of a model of one's own; None makes one for our
      decoder, from the policy's layers.

  Raises:
    ValueError: the row has a critic, and neither is there.
  """
  _require_critic(spec, critic)
  return _start(spec, *jax.tree.map(jnp.array, (policy, critic)))


def _require_critic(spec: UpdateSpec, critic) -> None:
  own = isinstance(spec.model, Model)
  if own and spec.algorithm.critic is not None and critic is None:
    raise ValueError(
      "the critic of a model of one's own has parameters of its own: give "
      "init(..., critic=)"
    )


def _start(spec: UpdateSpec, policy, critic) -> LearnerState:
  """The state of parameters that become a part of it; see `init`."""
  if not isinstance(spec.model, Model) and not lora.has(policy):
    key = jax.random.fold_in(jax.random.key(spec.seed), _ADAPTERS)
    policy = lora.add(policy, spec.config.lora, key)
  critic_optimizer = None
  if spec.algorithm.critic is None:
    critic = None
  else:
    if critic is None:
      critic = heads.init_critic(
        policy,
        own_trunk=spec.config.critic_trunk == "own",
        num_layers=spec.config.critic_layers,
        two_heads=spec.algorithm.critic == "both",
        adapters=spec.config.critic_lora,
        key=jax.random.fold_in(jax.random.key(spec.seed), _CRITIC_ADAPTERS),
      )
    # What it has of the policy as it is would be one array for both.
    shared = set(map(id, jax.tree.leaves(policy)))
    critic = jax.tree.map(
      lambda x: jnp.array(x) if id(x) in shared else x, critic
    )
    critic_optimizer = spec.critic_optimizer.init(critic)
  return LearnerState(
    policy=policy,
    policy_optimizer=spec.policy_optimizer.init(lora.split(policy)[0]),
    critic=critic,
    critic_optimizer=critic_optimizer,
    update=jnp.zeros((), jnp.int32),
    kl_coef=None
    if spec.algorithm.kl_target is None
    else jnp.asarray(
      spec.algorithm.kl_coef, floats.common(*jax.tree.leaves(policy))
    ),
    teacher=jax.tree.map(jnp.array, policy)
    if spec.algorithm.teacher_lag and "teacher" in spec.algorithm.needs
    else None,
  )


@functools.lru_cache(maxsize=4)
def _shared(
  model: transformer.ModelConfig,
  algorithm: Algorithm,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh,
  num_updates: int,
  seed: int,
  temperature: float,
  staleness: int,
) -> tuple[UpdateSpec, Callable, Callable, list[str]]:
  """The update of all learners with these options in this process.

  Only what is compiled is kept, for the last four kinds; no parameters are.

  Returns:
    What the update is made of, the compiled update, what compiles
    `explain.explain`, and a list that grows whenever the update is traced.
  """
  spec = make_spec(
    model, algorithm, config, mesh,
    num_updates=num_updates, seed=seed, temperature=temperature,
    staleness=staleness,
  )  # fmt: skip
  traced: list[str] = []

  def update(state, reference, batch, teacher):
    traced.append("update")  # runs while tracing only
    state, found = update_lib.update(spec, state, reference, batch, teacher)
    return mesh_lib.constrain(mesh, state), found

  compiled = functools.partial(
    jax.jit, compiler_options=mesh_lib.compiler_options(mesh)
  )
  explaining = compiled(functools.partial(explain.explain, spec))
  return spec, compiled(update, donate_argnums=0), explaining, traced


class Learner:
  """Builds the state and holds the compiled update.

  What was compiled for a learner serves a later one with equal options in the
  same process.
  """

  def __init__(
    self,
    model: transformer.ModelConfig | Model,
    algorithm: Algorithm,
    config: LearnerConfig,
    mesh: jax.sharding.Mesh,
    *,
    num_updates: int,
    seed: int,
    temperature: float = 1.0,
    staleness: int = 0,
    memory: int | None = None,
  ):
    """Builds the optimizers; nothing is compiled yet.

    Args:
      model: See `make_spec`, as for the others.
      algorithm: Row of the table.
      config: The options. Its `remat` stands for the model's where it names
        one.
      mesh: Devices.
      num_updates: Length of the run.
      seed: Root of the order of mini-batches.
      temperature: Of the sampler.
      staleness: Most updates that a step may lie behind; see `UpdateSpec`.
      memory: Bytes that a device has left for an update beside its arguments,
        for `learner.remat=auto`; None asks the devices at the first update.
    """
    self._mesh, self._memory = mesh, memory
    own = isinstance(model, Model)  # It says itself what is computed again.
    self._like = lambda remat: _shared(
      model if own else dataclasses.replace(model, remat=remat),
      algorithm, config, mesh, num_updates, seed, temperature, staleness,
    )  # fmt: skip
    automatic = own or config.remat == "auto"
    known = "none" if own else model.remat
    self._choosing = automatic and not own and known == "none"
    self._take(known if automatic else config.remat)
    self._compiled: dict[Any, jax.stages.Compiled] = {}
    self._traced_before = len(self._traced)

  def _take(self, remat: str) -> None:
    self.remat = remat
    self._spec, self._update, self._explain, self._traced = self._like(remat)

  @property
  def compiles(self) -> int:
    """Programs compiled since this was made, for it or for its like."""
    return len(self._traced) - self._traced_before

  @property
  def choice(self) -> dict[str, str] | None:
    """What is computed again, and on which devices; None if not chosen yet.

    As JSON, for `choose_again`.
    """
    if self._choosing:
      return None
    return {"remat": self.remat, "devices": self._kind}

  def choose_again(self, choice: dict[str, str] | None) -> None:
    """Takes an earlier `choice`, so that a resumed run gives the same bits.

    How much memory is free differs from one start to the next, and programs
    that compute other things again differ in their last bits. On other devices
    it is chosen anew: they may have no room for it.
    """
    if self._choosing and choice and choice["devices"] == self._kind:
      self._choosing = False
      self._take(choice["remat"])

  @property
  def _kind(self) -> str:
    devices = self._mesh.devices.flatten()
    return f"{len(devices)} {devices[0].device_kind}"

  def _choose(self, *args) -> None:
    """Takes the least recomputation that the devices have memory for."""
    self._choosing = False
    available = self._memory
    if available is None:
      available = memory_lib.free(self._mesh)
    if available is None:
      return
    state = args[0]
    compiled = lambda remat: self._like(remat)[1].lower(*args).compile()
    remat, found = memory_lib.choose(compiled, available)
    self._take(remat)
    self._compiled[_shapes(args)] = found
    memory_lib.warn_of_split(
      self._mesh, state, memory_lib.needed(found), available
    )

  def init(
    self,
    policy: chex.ArrayTree,
    critic: chex.ArrayTree | None = None,
    *,
    donate: bool = False,
  ) -> LearnerState:
    """State before the first update, on the devices; see `init`.

    Args:
      policy: Parameters of the policy, on any devices or as NumPy arrays.
      critic: Those of the critic of a model of one's own.
      donate: Whether the caller gives both up. Their arrays become those of the
        state where they lie on its devices, and are moved there otherwise: the
        devices then never hold them twice. Dicts and lists of the two trees are
        empty afterwards, and the next update takes the arrays. False copies.

    Raises:
      ValueError: the row has a critic, and neither is there.
    """
    _require_critic(self._spec, critic)
    # Devices that split the policy may not hold it whole, let alone what is
    # made of it: its parts are put in place first.
    take = mesh_lib.move if donate else mesh_lib.copied
    given = policy, critic
    state = _start(
      self._spec, *take(given, mesh_lib.placements(self._mesh, given))
    )
    return mesh_lib.move(state, mesh_lib.placements(self._mesh, state))

  def lower(
    self, policy: Any, reference: Any, batch: Batch
  ) -> jax.stages.Lowered:
    """The update as JAX lowers it from shapes: nothing is put anywhere.

    Args:
      policy: Shapes of the policy's parameters (`jax.ShapeDtypeStruct`).
      reference: Those of the reference policy with their shardings, or None.
      batch: Shapes with their shardings.

    Returns:
      A `jax.stages.Lowered`, to be compiled for the devices of the mesh.
    """
    state = jax.eval_shape(functools.partial(init, self._spec), policy)
    return self._update.lower(
      mesh_lib.shaped(self._mesh, state), reference, batch, None
    )

  def update(
    self,
    state: LearnerState,
    reference: chex.ArrayTree | None,
    batch: Batch,
    teacher: chex.ArrayTree | None = None,
  ) -> tuple[LearnerState, dict[str, Any]]:
    """One update; `state` is donated.

    Args:
      state: State before.
      reference: Parameters of the reference policy, None without a KL term.
      batch: From `put_batch`.
      teacher: Parameters of a teacher, None without; see
        `learner.update.update`.

    Returns:
      State after, and metrics: (sum, weight) pairs by name and quantiles.

    Raises:
      ValueError: a policy that the algorithm reads is missing.
    """
    args = (state, reference, batch, teacher)
    if self._choosing:
      self._choose(*args)
    compiled = self._compiled.get(_shapes(args))
    if compiled is None:
      return self._update(*args)
    return compiled(*args)

  def explain(
    self,
    state: LearnerState,
    reference: chex.ArrayTree | None,
    batch: Batch,
    teacher: chex.ArrayTree | None = None,
  ) -> explain.Explained:
    """What an update of this state would begin with; nothing is changed.

    Args:
      state: As for `update`; it is not donated.
      reference: Likewise.
      batch: Likewise.
      teacher: Likewise.

    Raises:
      ValueError: a policy that the algorithm reads is missing.
    """
    return self._explain(state, reference, batch, teacher)


def _shapes(tree: Any) -> tuple:
  """What a program is compiled for: structure, shapes and types."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple((x.shape, x.dtype) for x in leaves)
