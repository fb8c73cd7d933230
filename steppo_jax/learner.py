"""The learner: its state and one jitted update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from steppo_jax import estimators, objective
from steppo_jax import mesh as mesh_lib
from steppo_jax.algorithms import Algorithm
from steppo_jax.batch import Advantages, StepTable, TokenBatch
from steppo_jax.models import heads, transformer
from steppo_jax.ops import attention, logprobs, ratios, segments
from steppo_jax.packing import Packed


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """How the learner turns one batch into optimizer steps.

  Attributes:
    learning_rate: Of the policy, at its peak.
    critic_learning_rate: Of the critic, at its peak.
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
    bootstrap: What follows a truncated episode: "value", "zero", "drop_last".
    attention_block: Queries handled at once.
    logprob_chunk: Tokens projected to the vocabulary at once.
  """

  learning_rate: float = 5e-4
  critic_learning_rate: float = 1e-3
  final_learning_rate: float = 0.1
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  num_minibatches: int = 4
  actor_epochs: int = 1
  critic_epochs: int = 2
  critic_warmup: int = 2
  microbatch_rows: int = 8
  target_kl: float | None = None
  bootstrap: str = "value"
  attention_block: int = 64
  logprob_chunk: int = 2048

  def __post_init__(self):
    if self.bootstrap not in estimators.BOOTSTRAPS:
      raise ValueError(
        f"learner.bootstrap={self.bootstrap!r} is none of "
        f"{', '.join(estimators.BOOTSTRAPS)}"
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
  """One update's data on the devices; see `packing.Packed`."""

  tokens: TokenBatch  # [M, R, T]
  table: StepTable  # [S]
  rows_used: chex.Array  # [M]


def put_batch(packed: Packed, mesh: jax.sharding.Mesh) -> Batch:
  """Moves a packed batch to the devices, rows split over them."""
  return Batch(
    jax.device_put(packed.tokens, mesh_lib.by_row(mesh, 1)),
    jax.device_put(packed.table, mesh_lib.replicated(mesh)),
    jax.device_put(packed.rows_used, mesh_lib.replicated(mesh)),
  )


def optimizer(
  peak: float, config: LearnerConfig, steps: int
) -> optax.GradientTransformation:
  """Clipping, AdamW and a linear decay over `steps` optimizer steps."""
  schedule = optax.linear_schedule(
    peak, peak * config.final_learning_rate, max(steps, 1)
  )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay),
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
  ):
    """Builds the optimizers; nothing is compiled yet.

    Args:
      model: Sizes of the decoder.
      algorithm: Row of the table.
      config: The options.
      mesh: Devices that rows are split over.
      num_updates: Length of the run, for the decay of the learning rates.
      seed: Root of the order of mini-batches.

    Raises:
      ValueError: the microbatch cannot be split over the devices.
    """
    if config.microbatch_rows % mesh.size:
      raise ValueError(
        f"learner.microbatch_rows={config.microbatch_rows} is not a multiple "
        f"of the {mesh.size} devices"
      )
    self.compiles = 0
    self._mesh = mesh
    steps = config.num_minibatches * num_updates
    warmup = config.critic_warmup if algorithm.critic else 0
    self._policy_optimizer = optimizer(
      config.learning_rate,
      config,
      config.actor_epochs * config.num_minibatches * (num_updates - warmup),
    )
    self._critic_optimizer = optimizer(
      config.critic_learning_rate, config, config.critic_epochs * steps
    )
    self._has_critic = algorithm.critic is not None
    run = functools.partial(
      _update,
      _Parts(
        model,
        algorithm,
        config,
        self._policy_optimizer,
        self._critic_optimizer,
        mesh,
        seed,
      ),
    )

    def update(state, reference, batch):
      self.compiles += 1  # runs while tracing only
      return run(state, reference, batch)

    self._update = jax.jit(update, donate_argnums=0)

  def init(self, policy: Any) -> LearnerState:
    """State before the first update; `policy` is copied to the devices."""
    policy = jax.tree.map(jnp.array, policy)
    critic = heads.init_critic(policy) if self._has_critic else None
    state = LearnerState(
      policy=policy,
      policy_optimizer=self._policy_optimizer.init(policy),
      critic=jax.tree.map(jnp.array, critic),
      critic_optimizer=(
        self._critic_optimizer.init(critic) if self._has_critic else None
      ),
      update=jnp.zeros((), jnp.int32),
    )
    return jax.device_put(state, mesh_lib.replicated(self._mesh))

  def update(
    self, state: LearnerState, reference: Any, batch: Batch
  ) -> tuple[LearnerState, dict[str, Any]]:
    """One update; `state` is donated.

    Args:
      state: State before.
      reference: Parameters of the reference policy, None without a KL term.
      batch: From `put_batch`.

    Returns:
      State after, and metrics: (sum, weight) pairs by name and quantiles.
    """
    return self._update(state, reference, batch)


class _Parts(NamedTuple):
  model: transformer.ModelConfig
  algorithm: Algorithm
  config: LearnerConfig
  policy_optimizer: optax.GradientTransformation
  critic_optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  seed: int

  def attend(self, rows: TokenBatch) -> Callable:
    block = self.config.attention_block
    return lambda q, k, v: attention.interval_attention(
      q, k, v, rows.subtree_end, block=block
    )

  def logp(self, policy, rows: TokenBatch):
    """Log-probs and entropies [r, T] of the tokens of some rows."""
    hidden = transformer.apply(
      self.model, policy, rows.tokens, rows.positions, self.attend(rows)
    )
    return logprobs.next_token_logprobs(
      hidden,
      policy["embed"]["embedding"],
      rows.tokens,
      rows.parent,
      chunk=self.config.logprob_chunk,
    )

  def values(self, critic, rows: TokenBatch):
    """V at every token [r, T] of some rows."""
    return heads.values(
      self.model, critic, rows.tokens, rows.positions, self.attend(rows)
    )

  def rows(self, batch: Batch, m, i, array=None):
    """Rows of microbatch i of part m, and of an [M, R, T] array."""
    size = self.config.microbatch_rows

    def cut(x):
      part = jax.lax.dynamic_index_in_dim(x, m, 0, keepdims=False)
      part = jax.lax.dynamic_slice_in_dim(part, i * size, size, 0)
      return jax.lax.with_sharding_constraint(
        part, mesh_lib.by_row(self.mesh, 0)
      )

    return jax.tree.map(cut, batch.tokens if array is None else array)

  def sum_over(self, batch: Batch, m, function, like):
    """Adds function(rows of microbatch i, i) over the used rows of part m."""
    size = self.config.microbatch_rows
    count = (batch.rows_used[m] + size - 1) // size

    def body(i, total):
      return jax.tree.map(jnp.add, total, function(self.rows(batch, m, i), i))

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.fori_loop(0, count, body, zero)


def _over_all_rows(parts: _Parts, batch: Batch, function) -> chex.Array:
  """Applies `function(rows) -> [r, T]` to every used row; [M, R, T]."""
  size = parts.config.microbatch_rows

  def part(m, out):
    count = (batch.rows_used[m] + size - 1) // size

    def body(i, out):
      value = function(parts.rows(batch, m, i))
      return jax.lax.dynamic_update_slice(out, value[None], (m, i * size, 0))

    return jax.lax.fori_loop(0, count, body, out)

  shape = batch.tokens.tokens.shape
  return jax.lax.fori_loop(0, shape[0], part, jnp.zeros(shape))


def _flat(batch: TokenBatch) -> TokenBatch:
  """[M, R, T] to [M * R, T]."""
  return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch)


def _update(parts: _Parts, state, reference, batch: Batch):
  """Values, advantages, critic epochs, policy epochs: one whole update."""
  config, algorithm = parts.config, parts.algorithm
  shape = batch.tokens.tokens.shape
  flat, table = estimators.resolve_truncation(
    _flat(batch.tokens), batch.table, bootstrap=config.bootstrap
  )
  tokens = jax.tree.map(lambda x: x.reshape(shape), flat)
  batch = Batch(tokens, table, batch.rows_used)
  old_value = None
  if state.critic is not None:
    old_value = _over_all_rows(
      parts, batch, functools.partial(parts.values, state.critic)
    )
  value_bt = None if old_value is None else old_value.reshape(-1, shape[2])
  credit = objective.advantages(algorithm, flat, table, value_bt, None)
  metrics = _credit_metrics(table, credit, value_bt, algorithm)
  ref_logp = None
  if reference is not None and algorithm.kl_coef:
    ref_logp = _over_all_rows(
      parts, batch, lambda rows: parts.logp(reference, rows)[0]
    )
  critic, critic_optimizer = state.critic, state.critic_optimizer
  if critic is not None:
    critic, critic_optimizer, critic_metrics = _critic_epochs(
      parts, state, batch, credit, old_value
    )
    metrics |= critic_metrics
  policy, policy_optimizer, policy_metrics = _policy_epochs(
    parts, state, batch, credit, ref_logp
  )
  return (
    state.replace(
      policy=policy,
      policy_optimizer=policy_optimizer,
      critic=critic,
      critic_optimizer=critic_optimizer,
      update=state.update + 1,
    ),
    metrics | policy_metrics,
  )


def _order(parts: _Parts, state, purpose: int, epochs: int):
  """[epochs * M] order of mini-batches: a function of (seed, update)."""
  key = jax.random.fold_in(jax.random.key(parts.seed), state.update)
  keys = jax.random.split(jax.random.fold_in(key, purpose), epochs)
  shuffle = lambda k: jax.random.permutation(k, parts.config.num_minibatches)
  return jax.vmap(shuffle)(keys).reshape(-1)


def _to_rows(x, shape):
  """An advantage or target on the token clock as [M, R, T], else as it is."""
  return x.reshape(shape) if x.ndim == 2 else x


def _critic_epochs(parts, state, batch: Batch, credit, old_value):
  """All optimizer steps of the critic."""
  config, algorithm = parts.config, parts.algorithm
  shape = batch.tokens.tokens.shape
  target = _to_rows(credit.target, shape)
  size = config.microbatch_rows

  def loss(critic, rows, m, i):
    first = (m * shape[1] + i * size) * shape[2]
    local = batch.table.boundary - first
    here = (local >= 0) & (local < size * shape[2]) & batch.table.live
    (total, weight), metrics = objective.value_loss_terms(
      algorithm,
      parts.rows(batch, m, i, target) if target.ndim == 3 else target,
      parts.values(critic, rows),
      parts.rows(batch, m, i, old_value),
      rows,
      batch.table,
      boundary_local=jnp.where(here, local, 0),
      here=here,
      value_clip=algorithm.value_clip,
    )
    return total, (weight, metrics)

  def minibatch(carry, m):
    critic, optimizer_state = carry

    def one(rows, i):
      return jax.value_and_grad(loss, has_aux=True)(critic, rows, m, i)

    like = jax.eval_shape(one, parts.rows(batch, m, 0), 0)
    (_, (weight, metrics)), grads = parts.sum_over(batch, m, one, like)
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), grads)
    updates, optimizer_state = parts.critic_optimizer.update(
      grads, optimizer_state, critic
    )
    metrics["grad_norm"] = (optax.global_norm(grads), jnp.ones(()))
    return (optax.apply_updates(critic, updates), optimizer_state), metrics

  order = _order(parts, state, 1, config.critic_epochs)
  carry = (state.critic, state.critic_optimizer)
  carry, metrics = jax.lax.scan(minibatch, carry, order)
  return *carry, _named("critic", metrics)


def _policy_epochs(parts, state, batch: Batch, credit, ref_logp):
  """All optimizer steps of the policy."""
  config, algorithm = parts.config, parts.algorithm
  shape = batch.tokens.tokens.shape
  num_steps = batch.table.live.shape[0]
  advantage = _to_rows(credit.advantage, shape)
  count_k = segments.step_count(
    _flat(batch.tokens).step_ids, num_steps=num_steps
  )

  def loss(policy, rows, m, i, mu):
    logp_t, entropy_t = parts.logp(policy, rows)
    (total, weight), metrics = objective.policy_loss(
      algorithm,
      parts.rows(batch, m, i, advantage) if advantage.ndim == 3 else advantage,
      logp_t,
      entropy_t,
      rows,
      batch.table,
      mu=mu,
      count_k=count_k,
      ref_logp_t=None
      if ref_logp is None
      else parts.rows(batch, m, i, ref_logp),
    )
    z, count = log_ratios(logp_t, rows)
    metrics["token_log_ratio_abs"] = (jnp.sum(jnp.abs(z)), count)
    return total, (weight, metrics)

  def log_ratios(logp_t, rows):
    mask = rows.step_ids > 0
    z = ratios.log_ratio(logp_t, rows.behaviour_logp, mask)
    return z, jnp.sum(mask).astype(jnp.float32)

  def log_ratio_sums(policy, rows):
    z, count = log_ratios(parts.logp(policy, rows)[0], rows)
    return jnp.sum(z), count

  def minibatch(carry, m):
    policy, optimizer_state, live = carry
    mu = None
    if algorithm.center:
      sums = functools.partial(log_ratio_sums, policy)
      like = jax.eval_shape(sums, parts.rows(batch, m, 0))
      z, n = parts.sum_over(batch, m, lambda rows, i: sums(rows), like)
      mu = z / jnp.maximum(n, 1.0)

    def one(rows, i):
      return jax.value_and_grad(loss, has_aux=True)(policy, rows, m, i, mu)

    like = jax.eval_shape(one, parts.rows(batch, m, 0), 0)
    (_, (weight, metrics)), grads = parts.sum_over(batch, m, one, like)
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), grads)
    updates, new_state = parts.policy_optimizer.update(
      grads, optimizer_state, policy
    )
    kl, kl_weight = metrics["approx_kl"]
    if config.target_kl is not None:
      live &= kl <= config.target_kl * jnp.maximum(kl_weight, 1.0)
    keep = lambda new, old: jnp.where(live, new, old)
    policy = jax.tree.map(keep, optax.apply_updates(policy, updates), policy)
    optimizer_state = jax.tree.map(keep, new_state, optimizer_state)
    metrics["grad_norm"] = (optax.global_norm(grads), jnp.ones(()))
    metrics["stepped"] = (live.astype(jnp.float32), jnp.ones(()))
    return (policy, optimizer_state, live), metrics

  order = _order(parts, state, 2, config.actor_epochs)
  warm = state.critic is None or config.critic_warmup == 0
  live = jnp.array(True) if warm else state.update >= config.critic_warmup
  carry = (state.policy, state.policy_optimizer, live)
  (policy, optimizer_state, _), metrics = jax.lax.scan(minibatch, carry, order)
  # Before the first step learner and sampler hold the same weights, so that
  # what is left of the log-ratio is the gap between the two programs.
  gap = jax.tree.map(lambda x: x[0], metrics.pop("token_log_ratio_abs"))
  named = _named("policy", metrics) | {"policy/sampler_gap": gap}
  return policy, optimizer_state, named


def _named(prefix, metrics):
  """Adds (sum, weight) pairs over the mini-batches and prefixes the names."""
  return {
    f"{prefix}/{name}": jax.tree.map(lambda x: jnp.sum(x, axis=0), pair)
    for name, pair in metrics.items()
  }


def _credit_metrics(table, credit: Advantages, value_bt, algorithm: Algorithm):
  """What the estimator found, before anything is trained."""
  live = table.live.astype(jnp.float32)
  count = jnp.sum(live)
  metrics = {
    "batch/reward": (jnp.sum(table.reward * live), count),
    "batch/truncated": (
      jnp.sum(table.truncated & table.live).astype(jnp.float32),
      jnp.sum(table.last & table.live).astype(jnp.float32),
    ),
  }
  if value_bt is not None and algorithm.critic == "step":
    value = value_bt.reshape(-1)[table.boundary]
    mean = jnp.sum(credit.target * live) / jnp.maximum(count, 1.0)
    spread = jnp.sum(live * jnp.square(credit.target - mean))
    error = jnp.sum(live * jnp.square(credit.target - value))
    metrics["critic/unexplained_variance"] = (error, spread)
  return metrics


def split_metrics(found: dict[str, Any]):
  """Separates (sum, weight) pairs from plain numbers."""
  pairs = {k: v for k, v in found.items() if isinstance(v, tuple)}
  plain = {k: v for k, v in found.items() if not isinstance(v, tuple)}
  return pairs, plain
