"""One update as a pure function: values, credit, critic and policy epochs."""

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
from steppo_jax.batch import Advantages, TokenBatch
from steppo_jax.models import heads, transformer
from steppo_jax.ops import attention, logprobs, ratios, segments


class Parts(NamedTuple):
  """What an update is made of, constant over a run.

  `config` is a `learner.LearnerConfig`. A batch is a `learner.Batch` with
  tokens [M, R, T]: R rows in each of M mini-batches. `temperature` is the
  sampler's: the policy is softmax(logits / temperature).
  """

  model: transformer.ModelConfig
  algorithm: Algorithm
  config: Any
  policy_optimizer: optax.GradientTransformation
  critic_optimizer: optax.GradientTransformation
  mesh: jax.sharding.Mesh
  seed: int
  temperature: float = 1.0

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
      hidden / self.temperature,
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

  def rows(self, batch, m, i, array=None):
    """Rows of microbatch i of part m, and of an [M, R, T] array."""
    size = self.config.microbatch_rows

    def cut(x):
      part = jax.lax.dynamic_index_in_dim(x, m, 0, keepdims=False)
      part = jax.lax.dynamic_slice_in_dim(part, i * size, size, 0)
      return jax.lax.with_sharding_constraint(
        part, mesh_lib.by_row(self.mesh, 0)
      )

    return jax.tree.map(cut, batch.tokens if array is None else array)

  def sum_over(self, batch, m, function, like):
    """Adds function(rows of microbatch i, i) over the used rows of part m."""
    size = self.config.microbatch_rows
    count = (batch.rows_used[m] + size - 1) // size

    def body(i, total):
      return jax.tree.map(jnp.add, total, function(self.rows(batch, m, i), i))

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.fori_loop(0, count, body, zero)


def _over_all_rows(parts: Parts, batch, function) -> chex.Array:
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


def update(parts: Parts, state, reference, batch):
  """Values, advantages, critic epochs, policy epochs: one whole update."""
  config, algorithm = parts.config, parts.algorithm
  shape = batch.tokens.tokens.shape
  flat, table = estimators.resolve_truncation(
    _flat(batch.tokens), batch.table, bootstrap=config.bootstrap
  )
  tokens = jax.tree.map(lambda x: x.reshape(shape), flat)
  batch = batch._replace(tokens=tokens, table=table)
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


def _order(parts: Parts, state, purpose: int, epochs: int):
  """[epochs * M] order of mini-batches: a function of (seed, update)."""
  key = jax.random.fold_in(jax.random.key(parts.seed), state.update)
  keys = jax.random.split(jax.random.fold_in(key, purpose), epochs)
  shuffle = lambda k: jax.random.permutation(k, parts.config.num_minibatches)
  return jax.vmap(shuffle)(keys).reshape(-1)


def _to_rows(x, shape):
  """An advantage or target on the token clock as [M, R, T], else as it is."""
  return x.reshape(shape) if x.ndim == 2 else x


def _critic_epochs(parts, state, batch, credit, old_value):
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
    metrics["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
    return (optax.apply_updates(critic, updates), optimizer_state), metrics

  order = _order(parts, state, 1, config.critic_epochs)
  carry = (state.critic, state.critic_optimizer)
  carry, metrics = jax.lax.scan(minibatch, carry, order)
  return *carry, _named("critic", metrics)


class _Fixed(NamedTuple):
  """What stays the same over all steps of the policy."""

  advantage: chex.Array  # [S] or [M, R, T]
  count_k: chex.Array  # [S] action tokens of every step
  ref_logp: chex.Array | None  # [M, R, T]


def _log_ratios(logp_t, rows: TokenBatch):
  """Token log-ratios, 0 off the actions, and the number of action tokens."""
  mask = rows.step_ids > 0
  z = ratios.log_ratio(logp_t, rows.behaviour_logp, mask)
  return z, jnp.sum(mask).astype(jnp.float32)


def _policy_loss(parts, batch, fixed: _Fixed, mu, policy, rows, m, i):
  """Loss sum of microbatch i of part m, with (weight, metrics)."""
  advantage, ref_logp = fixed.advantage, fixed.ref_logp
  logp_t, entropy_t = parts.logp(policy, rows)
  (total, weight), metrics = objective.policy_loss(
    parts.algorithm,
    parts.rows(batch, m, i, advantage) if advantage.ndim == 3 else advantage,
    logp_t,
    entropy_t,
    rows,
    batch.table,
    mu=mu,
    count_k=fixed.count_k,
    ref_logp_t=None if ref_logp is None else parts.rows(batch, m, i, ref_logp),
  )
  z, count = _log_ratios(logp_t, rows)
  metrics["token_gap"] = (jnp.sum(jnp.abs(z)), count)
  metrics["step_log_ratio"] = segments.step_mean(
    z, rows.step_ids, num_steps=batch.table.live.shape[0]
  )
  return total, (weight, metrics)


def _mean_log_ratio(parts, batch, policy, m):
  """Mean token log-ratio of a whole mini-batch, which centred ratios need."""

  def sums(rows):
    z, count = _log_ratios(parts.logp(policy, rows)[0], rows)
    return jnp.sum(z), count

  like = jax.eval_shape(sums, parts.rows(batch, m, 0))
  z, count = parts.sum_over(batch, m, lambda rows, i: sums(rows), like)
  return z / jnp.maximum(count, 1.0)


def _policy_step(parts, batch, fixed: _Fixed, carry, m):
  """One optimizer step of the policy, on mini-batch m."""
  policy, optimizer_state, live = carry
  target_kl = parts.config.target_kl
  mu = None
  if parts.algorithm.center:
    mu = _mean_log_ratio(parts, batch, policy, m)
  loss = functools.partial(_policy_loss, parts, batch, fixed, mu)

  def one(rows, i):
    return jax.value_and_grad(loss, has_aux=True)(policy, rows, m, i)

  like = jax.eval_shape(one, parts.rows(batch, m, 0), 0)
  (_, (weight, metrics)), grads = parts.sum_over(batch, m, one, like)
  grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1.0), grads)
  updates, new_state = parts.policy_optimizer.update(
    grads, optimizer_state, policy
  )
  kl, kl_weight = metrics["approx_kl"]
  if target_kl is not None:
    live &= kl <= target_kl * jnp.maximum(kl_weight, 1.0)
  keep = lambda new, old: jnp.where(live, new, old)
  policy = jax.tree.map(keep, optax.apply_updates(policy, updates), policy)
  optimizer_state = jax.tree.map(keep, new_state, optimizer_state)
  metrics["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
  metrics["stepped"] = (live.astype(jnp.float32), jnp.ones(()))
  return (policy, optimizer_state, live), metrics


def _policy_epochs(parts, state, batch, credit, ref_logp):
  """All optimizer steps of the policy."""
  config = parts.config
  shape = batch.tokens.tokens.shape
  count_k = segments.step_count(
    _flat(batch.tokens).step_ids, num_steps=batch.table.live.shape[0]
  )
  fixed = _Fixed(_to_rows(credit.advantage, shape), count_k, ref_logp)
  live = jnp.array(True)
  if state.critic is not None:
    live = state.update >= config.critic_warmup
  (policy, optimizer_state, _), metrics = jax.lax.scan(
    functools.partial(_policy_step, parts, batch, fixed),
    (state.policy, state.policy_optimizer, live),
    _order(parts, state, 2, config.actor_epochs),
  )
  # Before the first step learner and sampler hold the same weights, so that
  # what is left of the log-ratio is the gap between the two programs.
  gap = jax.tree.map(lambda x: x[0], metrics.pop("token_gap"))
  # Each step is in one mini-batch; the last epoch is the furthest off-policy.
  z_k = jnp.sum(metrics.pop("step_log_ratio")[-shape[0] :], axis=0)
  found = _named("policy", metrics) | {"policy/sampler_gap": gap}
  z_k = jnp.where(count_k > 0, z_k, jnp.nan)
  for percent in (1, 50, 99):
    quantile = jnp.nanquantile(z_k, percent / 100)
    found[f"policy/ratio_q{percent:02d}"] = jnp.exp(quantile)
  return policy, optimizer_state, found


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
