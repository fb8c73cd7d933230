"""The learner: its state and one jitted update."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from steppo_jax import estimators, forest, optimizers
from steppo_jax import mesh as mesh_lib
from steppo_jax import update as update_lib
from steppo_jax.algorithms import Algorithm
from steppo_jax.batch import StepTable, TeacherRows, TokenBatch
from steppo_jax.microbatch import Parts
from steppo_jax.models import heads, lora, transformer
from steppo_jax.models.lora import LoraConfig
from steppo_jax.packing import Packed

# Purpose of the key that draws adapters; those of updates are counted from 0.
_ADAPTERS = 2**31


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """How the learner turns one batch into optimizer steps.

  Attributes:
    learning_rate: Of the policy, at its peak.
    critic_learning_rate: Of the critic, at its peak.
    warmup_steps: Optimizer steps over which the policy's rate rises from 0:
      Adam's first steps have full size whatever the gradient, and the critic
      has yet to learn.
    critic_warmup_steps: The same for the critic's rate.
    final_learning_rate: Fraction of both that is left at the last update; the
      decay is linear over `num_updates`.
    weight_decay: AdamW's, for matrices and vectors alike.
    max_grad_norm: Gradients are scaled down to this global norm.
    num_minibatches: Parts of whole trajectories that a batch is cut into.
    actor_epochs: Passes of the policy over the batch.
    critic_epochs: Passes of the critic over the batch.
    critic_warmup: Updates at the start that train the critic alone.
    microbatch_rows: Rows whose gradients are computed at once.
    target_kl: Policy steps stop for the rest of the update once the mean k3
      of a mini-batch exceeds this many nats; None never stops.
    critic_trunk: What the critic's head reads: "own" is a copy of the policy's
      layers that is trained with it; "policy" is the policy's layers as they
      are, which costs no memory, and no gradient of the critic reaches them.
    bootstrap: What follows a truncated episode: "value", "zero", "drop_last".
    attention: "xla", "pallas" (a TPU kernel, interpreted elsewhere), or "auto":
      "pallas" on a TPU and "xla" on anything else. Models with sliding windows
      take "xla" everywhere.
    attention_block: Queries handled at once. Rows of more than 4 blocks go
      through a loop, which a differentiable update avoids with larger blocks.
    logprob_chunk: Tokens projected to the vocabulary at once.
    lora: Adapters that are trained instead of the policy's own matrices.
  """

  learning_rate: float = 5e-4
  critic_learning_rate: float = 1e-3
  warmup_steps: int = 10
  critic_warmup_steps: int = 10
  final_learning_rate: float = 0.1
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  num_minibatches: int = 4
  actor_epochs: int = 1
  critic_epochs: int = 2
  critic_warmup: int = 2
  microbatch_rows: int = 8
  target_kl: float | None = None
  critic_trunk: Literal["own", "policy"] = "own"
  bootstrap: str = "value"
  attention: Literal["auto", "xla", "pallas"] = "auto"
  attention_block: int = 64
  logprob_chunk: int = 256
  lora: LoraConfig = LoraConfig()

  def __post_init__(self):
    if self.bootstrap not in estimators.BOOTSTRAPS:
      raise ValueError(
        f"learner.bootstrap={self.bootstrap!r} is none of "
        f"{', '.join(estimators.BOOTSTRAPS)}"
      )
    if self.critic_trunk not in ("own", "policy"):
      raise ValueError(
        f"learner.critic_trunk={self.critic_trunk!r} is none of own, policy"
      )
    for name in ("num_minibatches", "actor_epochs", "microbatch_rows"):
      if getattr(self, name) < 1:
        raise ValueError(f"learner.{name} must be at least 1")


@chex.dataclass(frozen=True)
class LearnerState:
  """Everything an update changes; critic and its optimizer may be None."""

  policy: Any
  policy_optimizer: Any
  critic: Any
  critic_optimizer: Any
  update: chex.Array


class Batch(NamedTuple):
  """One update's data on the devices; see `packing.Packed`.

  With `teacher` the policy itself, told more, is the teacher.
  """

  tokens: TokenBatch  # [M, R, T]
  table: StepTable  # [S]
  rows_used: chex.Array  # [M]
  teacher: TeacherRows | None = None


def put_batch(
  packed: Packed,
  mesh: jax.sharding.Mesh,
  teacher: TeacherRows | None = None,
) -> Batch:
  """Moves a packed batch to the devices, rows split over them.

  Args:
    packed: The batch on the host.
    mesh: The devices.
    teacher: The rows of its teacher (`peers.pack`), or None.

  Raises:
    ValueError: rows that are no forest; see `forest.check_rows`.
  """
  t = packed.tokens
  forest.check_rows(t.parent, t.subtree_end, t.positions, t.step_ids)
  rows, whole = mesh_lib.by_row(mesh, 1), mesh_lib.replicated(mesh)
  if teacher is not None:
    teacher = mesh_lib.put(teacher, TeacherRows(rows, whole, whole, whole))
  return Batch(
    mesh_lib.put(packed.tokens, rows),
    mesh_lib.put(packed.table, whole),
    mesh_lib.put(packed.rows_used, whole),
    teacher,
  )


def make_parts(
  model: transformer.ModelConfig,
  algorithm: Algorithm,
  config: LearnerConfig,
  mesh: jax.sharding.Mesh,
  *,
  num_updates: int,
  seed: chex.Numeric,
  temperature: float = 1.0,
  differentiable: bool = False,
) -> Parts:
  """What `update.update` is made of.

  Called inside a traced function it takes traced scalars for the seed, for the
  rates of `config` and for the numbers of `algorithm`:

    def run(seed, discount, rate):
      parts = make_parts(
        model, replace(row, discount=discount),
        replace(config, learning_rate=rate), mesh, num_updates=1, seed=seed)
      return update.update(parts, init(parts, policy), None, batch)

    states, metrics = jax.jit(jax.vmap(run))(seeds, discounts, rates)

  Args:
    model: Sizes of the decoder.
    algorithm: Row of the table.
    config: The options.
    mesh: Devices that rows are split over.
    num_updates: Length of the run, for the decay of the learning rates.
    seed: Root of the order of mini-batches.
    temperature: Of the softmax that sampled, above 0; not traced.
    differentiable: See `microbatch.Parts`.

  Raises:
    ValueError: the microbatch cannot be split over the devices, or the
      temperature is 0.
  """
  if not temperature > 0:
    raise ValueError(
      f"rollout.temperature={temperature} must be above 0 in training: a "
      "greedy policy explores nothing"
    )
  if model.windows and config.attention == "pallas":
    raise ValueError(
      "learner.attention=pallas knows of no sliding windows: take xla or auto "
      f"for a {model.family} model"
    )
  if config.microbatch_rows % mesh_lib.row_parts(mesh):
    raise ValueError(
      f"learner.microbatch_rows={config.microbatch_rows} is not a multiple "
      f"of the {mesh_lib.row_parts(mesh)} devices"
    )
  steps = config.num_minibatches * num_updates
  warmup = config.critic_warmup if algorithm.critic else 0
  # Adam's square root has no derivative where a gradient is always 0.
  root = 1e-16 if differentiable else 0.0
  return Parts(
    model,
    algorithm,
    config,
    optimizers.adamw(
      config.learning_rate,
      config.warmup_steps,
      config,
      config.actor_epochs * config.num_minibatches * (num_updates - warmup),
      eps_root=root,
    ),
    optimizers.adamw(
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
  )


def init(parts: Parts, policy: Any) -> LearnerState:
  """State before the first update, from copies of the policy's parameters.

  Adapters that the options ask for are added; those that the policy brings are
  trained on.
  """
  policy = jax.tree.map(jnp.array, policy)
  if not lora.has(policy):
    key = jax.random.fold_in(jax.random.key(parts.seed), _ADAPTERS)
    policy = lora.add(policy, parts.config.lora, key)
  critic = critic_optimizer = None
  if parts.algorithm.critic is not None:
    critic = jax.tree.map(
      jnp.array,
      heads.init_critic(policy, own_trunk=parts.config.critic_trunk == "own"),
    )
    critic_optimizer = parts.critic_optimizer.init(critic)
  return LearnerState(
    policy=policy,
    policy_optimizer=parts.policy_optimizer.init(lora.split(policy)[0]),
    critic=critic,
    critic_optimizer=critic_optimizer,
    update=jnp.zeros((), jnp.int32),
  )


class Learner:
  """Builds the state and holds the compiled update.

  Attributes:
    compiles: Programs traced so far.
  """

  def __init__(
    self,
    model: transformer.ModelConfig,
    algorithm: Algorithm,
    config: LearnerConfig,
    mesh: jax.sharding.Mesh,
    *,
    num_updates: int,
    seed: int,
    temperature: float = 1.0,
  ):
    """Builds the optimizers; nothing is compiled yet. See `make_parts`."""
    self.compiles = 0
    self._mesh = mesh
    self._parts = make_parts(
      model,
      algorithm,
      config,
      mesh,
      num_updates=num_updates,
      seed=seed,
      temperature=temperature,
    )
    run = functools.partial(update_lib.update, self._parts)

    def update(state, reference, batch, teacher):
      self.compiles += 1  # runs while tracing only
      state, found = run(state, reference, batch, teacher)
      return mesh_lib.constrain(mesh, state), found

    self._update = jax.jit(update, donate_argnums=0)

  def init(self, policy: Any) -> LearnerState:
    """State before the first update; `policy` is copied to the devices."""
    state = init(self._parts, policy)
    return mesh_lib.put(state, mesh_lib.placements(self._mesh, state))

  def lower(self, policy: Any, reference: Any, batch: Batch) -> Any:
    """The update as JAX lowers it from shapes: nothing is put anywhere.

    Args:
      policy: Shapes of the policy's parameters (`jax.ShapeDtypeStruct`).
      reference: Those of the reference policy with their shardings, or None.
      batch: Shapes with their shardings.

    Returns:
      A `jax.stages.Lowered`, to be compiled for the devices of the mesh.
    """
    state = jax.eval_shape(functools.partial(init, self._parts), policy)
    return self._update.lower(
      mesh_lib.shaped(self._mesh, state), reference, batch, None
    )

  def update(
    self, state: LearnerState, reference: Any, batch: Batch, teacher: Any = None
  ) -> tuple[LearnerState, dict[str, Any]]:
    """One update; `state` is donated.

    Args:
      state: State before.
      reference: Parameters of the reference policy, None without a KL term.
      batch: From `put_batch`.
      teacher: Parameters of a teacher, None without; see `update.update`.

    Returns:
      State after, and metrics: (sum, weight) pairs by name and quantiles.

    Raises:
      ValueError: a policy that the algorithm reads is missing.
    """
    return self._update(state, reference, batch, teacher)


def split_metrics(found: dict[str, Any]):
  """Separates (sum, weight) pairs from plain numbers."""
  pairs = {k: v for k, v in found.items() if isinstance(v, tuple)}
  plain = {k: v for k, v in found.items() if not isinstance(v, tuple)}
  return pairs, plain
