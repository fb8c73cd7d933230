"""One update as a pure function: values, credit, critic and policy epochs."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from steppo_jax.algorithms import objective
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.batch import TokenBatch
from steppo_jax.learner import credit as credit_lib
from steppo_jax.learner import modes, optimizers
from steppo_jax.learner.spec import UpdateSpec
from steppo_jax.models import lora
from steppo_jax.ops import floats, ratios, segments


def update(spec: UpdateSpec, state, reference, batch, teacher=None):
  """Values, advantages, critic epochs, policy epochs: one whole update.

  A pure function. Numbers of `spec.algorithm` and `spec.config`, the learning
  rates and the seed may be traced, so that `vmap` over them runs several
  updates at once. With `spec.differentiable` the new parameters also have
  reverse-mode gradients in them, through any number of updates: what a loss
  takes for a constant (values, targets, the policy's hidden states under a
  critic without a trunk, CISPO's weight, that of `rollout_correction`, CAPO's
  centre, a KL that is steered) was made by the updates before, and gradients go
  there too. In float64 they agree with finite differences
  (`tests/learner/test_meta_gradients.py`). One limit:

  - A ratio is inside its clip or outside, so that parameters move by jumps as
    the clip moves: their gradient in the clip of the "clip" surrogate is 0. It
    is the loss that depends on that clip smoothly, and "log_clip" and "cispo"
    whose new parameters do.

  Args:
    spec: What stays the same over a run.
    state: `learner.state.LearnerState` before. Its arrays, as those of the
      other arguments, may be NumPy's.
    reference: Parameters of the reference policy, None where the algorithm
      reads none. For a policy with adapters None stands for the same tree
      without them.
    batch: `learner.state.Batch`.
    teacher: Parameters of a fixed teacher, say the policy of a longer run.
      They are evaluated on the tokens as they were sampled, so that the teacher
      sees what the student saw, or on the rows of `batch.teacher`. None where
      the algorithm reads none, and where the policy itself, told more, is the
      teacher of `batch.teacher` (`packing.teacher_rows.pack`): as it is before
      the update, or as it was up to `teacher_lag` updates ago.

  Returns:
    State after, and metrics.

  Raises:
    ValueError: a policy that the algorithm reads is missing, or rows do not
      make whole microbatches. Raised while tracing: nothing is compiled.
  """
  state, reference, batch, teacher = as_jax((state, reference, batch, teacher))
  spec, credit = assigned(spec, state, reference, batch, teacher)
  metrics = credit.metrics
  critic, critic_optimizer = state.critic, state.critic_optimizer
  if critic is not None:
    critic, critic_optimizer, critic_metrics = _critic_epochs(
      spec, state, credit
    )
    metrics |= critic_metrics | {"critic/param_norm": _norm(critic)}
  policy, policy_optimizer, policy_metrics = _policy_epochs(spec, state, credit)
  metrics["policy/param_norm"] = _norm(lora.split(policy)[0])
  kl_coef = state.kl_coef
  if kl_coef is not None:
    metrics["policy/kl_coef"] = kl_coef, jnp.ones(())
    total, weight = policy_metrics["policy/kl_per_token"]
    kl_coef = _towards(
      kl_coef, total / jnp.maximum(weight, 1), spec.algorithm.kl_target
    )
  return (
    state.replace(
      policy=policy,
      policy_optimizer=policy_optimizer,
      critic=critic,
      critic_optimizer=critic_optimizer,
      update=state.update + 1,
      kl_coef=kl_coef,
      teacher=_lagging(spec.algorithm, state, policy),
    ),
    metrics | policy_metrics,
  )


def assigned(
  spec: UpdateSpec, state, reference, batch, teacher
) -> tuple[UpdateSpec, credit_lib.Credit]:
  """The part of an update before anything is trained; arguments as there.

  Returns:
    What the rest of the update is made of, and the credit.

  Raises:
    ValueError: see `update`.
  """
  if state.kl_coef is not None:
    row = dataclasses.replace(spec.algorithm, kl_coef=state.kl_coef)
    spec = spec._replace(algorithm=row)
  if (
    reference is None
    and spec.algorithm.reads_reference
    and lora.has(state.policy)
  ):
    reference = lora.off(state.policy)
  if batch.teacher is not None and teacher is None:
    # The policy as it is, or as it was some updates ago.
    teacher = state.policy if state.teacher is None else state.teacher
  _check(spec, state, reference, batch, teacher)
  spec = spec.on(batch.tokens)
  return spec, credit_lib.assign(spec, state, reference, batch, teacher)


def as_jax(tree):
  """A tree with JAX's arrays for NumPy's, which no traced number can index."""
  own = lambda x: isinstance(x, np.ndarray | np.generic)
  return jax.tree.map(lambda x: jnp.asarray(x) if own(x) else x, tree)


def _lagging(algorithm, state, policy):
  """The teacher of the next update: the policy of a moment ago, or its own."""
  if state.teacher is None:
    return None
  turn = (state.update + 1) % algorithm.teacher_lag == 0
  return jax.tree.map(lambda x, y: jnp.where(turn, x, y), policy, state.teacher)


def _towards(kl_coef, kl, target):
  """The weight of the KL for the next update, a little nearer to its target.

  Args:
    kl_coef: The weight of this update.
    kl: Mean KL of its tokens to the reference, in nats.
    target: What the KL is to be.

  Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
  """
  # The weight keeps its type, so that a scan can carry it.
  kl, target = (floats.constant(x, kl_coef.dtype) for x in (kl, target))
  error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
  return kl_coef * (1.0 + 0.1 * error)


def _norm(tree):
  """Norm of all in a tree, as (sum, weight): not finite if one entry is not."""
  # A root of 0 has no derivative, and nobody asks for one.
  tree = jax.lax.stop_gradient(tree)
  with jax.numpy_dtype_promotion("standard"):
    return optax.tree.norm(tree), jnp.ones(())


def _divided(grads, weight):
  """Gradients of a mean; of nothing they are 0."""
  weight = jnp.where(weight > 0, weight, 1.0)
  return jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)


def _check(spec: UpdateSpec, state, reference, batch, teacher) -> None:
  policies = {
    "critic": state.critic, "reference": reference,
    "teacher": teacher,
  }  # fmt: skip
  prompts, shape = batch.prompts, batch.tokens.tokens.shape
  if prompts is not None and prompts.tokens.tokens.shape != shape:
    raise ValueError(
      f"batch.prompts has rows of shape {prompts.tokens.tokens.shape}, and the "
      f"batch of {shape}: take packing.prompt_rows.pack of the same batch"
    )
  policies["reasoning"] = batch.tokens.reasoning
  found = {name for name, params in policies.items() if params is not None}
  algorithms_table.check_needs(
    spec.algorithm, found | {"group", "anchor", "entropy"}
  )
  size = spec.config.microbatch_rows
  for name, part in (
    ("a mini-batch", batch),
    ("the teacher", batch.teacher),
    ("the critic", batch.prompts),
  ):
    if part is not None and part.tokens.tokens.shape[1] % size:
      raise ValueError(
        f"{part.tokens.tokens.shape[1]} rows of {name} are not a multiple of "
        f"learner.microbatch_rows={size}: pack with rows_multiple={size}"
      )


def _order(spec: UpdateSpec, state, purpose: int, epochs: int):
  """[epochs * M] order of mini-batches: a function of (seed, update)."""
  key = jax.random.fold_in(jax.random.key(spec.seed), state.update)
  keys = jax.random.split(jax.random.fold_in(key, purpose), epochs)
  shuffle = lambda k: jax.random.permutation(k, spec.config.num_minibatches)
  return jax.vmap(shuffle)(keys).reshape(-1).astype(jnp.int32)


def to_rows(x, shape):
  """An advantage or target on the token clock as [M, R, T], else as it is."""
  return x.reshape(shape) if x.ndim == 2 else x


def _critic_values(spec, state, credit, critic, rows, m, i):
  """Values of some rows, of the hidden states that are kept if some are.

  The loss is differentiated in the critic alone: to an epoch the hidden states
  are constants, though what updates before made of the policy is in them.
  """
  if credit.hidden is None:
    return spec.values(critic, state.policy, rows)
  return spec.read_values(critic, rows, spec.kept(credit.hidden, m, i))


def _critic_epochs(spec, state, credit: credit_lib.Credit):
  """All optimizer steps of the critic."""
  config, batch = spec.config, credit.reading
  shape = batch.tokens.tokens.shape

  def loss(critic, rows, m, i):
    first = (m * shape[1] + spec.first_row(i)) * shape[2]
    local = batch.table.boundary - first
    here = (local >= 0) & (local < spec.size * shape[2]) & batch.table.live

    def terms(clock, target, value, old_value):
      target = to_rows(target, shape)
      return objective.value_loss_terms(
        dataclasses.replace(spec.algorithm, critic=clock),
        spec.rows(batch, m, i, target) if target.ndim == 3 else target,
        value,
        spec.rows(batch, m, i, old_value),
        rows,
        batch.table,
        boundary_local=jnp.where(here, local, 0),
        here=here,
        value_clip=spec.algorithm.value_clip,
      )

    value = _critic_values(spec, state, credit, critic, rows, m, i)
    target, old_value = credit.advantages.target, credit.read_value
    if spec.algorithm.critic != "both":
      (total, weight), metrics = terms(
        spec.algorithm.critic, target, value, old_value
      )
      return total, (weight, metrics)
    (turns, weight), metrics = terms("step", target[0], value[0], old_value[0])
    (tokens, _), more = terms("token", target[1], value[1], old_value[1])
    # The mean over tokens beside the mean over steps, which is divided by the
    # number of steps of the mini-batch.
    steps, count = _steps_and_tokens(batch, m)
    metrics |= {f"token_{name}": pair for name, pair in more.items()}
    turns, tokens = floats.of(turns, tokens)
    steps, count = (x.astype(tokens.dtype) for x in (steps, count))
    return turns + tokens * steps / jnp.maximum(count, 1), (weight, metrics)

  def minibatch(carry, m):
    critic, optimizer_state = carry

    def one(rows, i):
      return jax.value_and_grad(loss, has_aux=True)(critic, rows, m, i)

    (_, (weight, metrics)), grads = spec.sum_over(batch, m, one)
    grads = _divided(grads, weight)
    critic, optimizer_state = optimizers.step(
      spec.critic_optimizer, grads, optimizer_state, critic
    )
    metrics["grad_norm"] = _norm(grads)
    return (critic, optimizer_state), metrics

  order = _order(spec, state, 1, config.critic_epochs)
  carry = (state.critic, state.critic_optimizer)
  carry, metrics = jax.lax.scan(minibatch, carry, order)
  return *carry, _named("critic", metrics)


def _steps_and_tokens(batch, m):
  """Live steps whose boundary lies in mini-batch m, and its action tokens."""
  shape = batch.tokens.tokens.shape
  part_k = batch.table.boundary // (shape[1] * shape[2])
  return (
    jnp.sum(batch.table.live & (part_k == m)).astype(jnp.float32),
    jnp.sum(batch.tokens.step_ids[m] > 0).astype(jnp.float32),
  )


class _Fixed(NamedTuple):
  """What stays the same over all steps of the policy."""

  advantage: chex.Array  # [S] or [M, R, T]
  ref_logp: chex.Array | None  # [M, R, T]
  weight: chex.Array | None  # [M, R, T]


def _log_ratios(logp_t, rows: TokenBatch):
  """Token log-ratios, 0 off the actions, and the number of action tokens."""
  mask = rows.step_ids > 0
  z = ratios.log_ratio(logp_t, rows.behaviour_logp, mask)
  return z, jnp.sum(mask).astype(z.dtype)


def _policy_loss(spec, batch, fixed: _Fixed, mu, policy, rows, m, i):
  """Loss sum of microbatch i of part m, with (weight, metrics)."""
  advantage = fixed.advantage
  of_rows = lambda x: None if x is None else spec.rows(batch, m, i, x)
  logp_t, entropy_t = spec.logp(policy, rows)
  (total, weight), metrics = objective.policy_loss(
    spec.algorithm,
    of_rows(advantage) if advantage.ndim == 3 else advantage,
    logp_t,
    entropy_t,
    rows,
    batch.table,
    mu=mu,
    ref_logp_t=of_rows(fixed.ref_logp),
    weight_t=of_rows(fixed.weight),
  )
  z, count = _log_ratios(jax.lax.stop_gradient(logp_t), rows)
  metrics["token_gap"] = jnp.stack(
    [jnp.sum(jnp.abs(z)), jnp.sum(modes.k3(z)), count]
  )
  metrics["step_log_ratio"] = segments.step_mean(
    z, rows.step_ids, num_steps=batch.table.live.shape[0]
  )
  return total, (weight, metrics)


def _mean_log_ratio(spec, batch, policy, m):
  """Mean token log-ratio of a whole mini-batch, which centred ratios need."""

  def sums(rows, i):
    del i
    z, count = _log_ratios(spec.logp(policy, rows)[0], rows)
    return jnp.sum(z), count

  z, count = spec.sum_over(batch, m, sums)
  return z / jnp.maximum(count, 1.0)


def _policy_step(spec, batch, fixed: _Fixed, carry, m):
  """One optimizer step of the policy, on mini-batch m."""
  policy, optimizer_state, live = carry
  target_kl = spec.config.target_kl
  mu = None
  if spec.algorithm.center:
    mu = _mean_log_ratio(spec, batch, policy, m)
  loss = functools.partial(_policy_loss, spec, batch, fixed, mu)

  trained, frozen = lora.split(policy)

  def one(rows, i):
    of = lambda trained: loss(lora.join(trained, frozen), rows, m, i)
    return jax.value_and_grad(of, has_aux=True)(trained)

  (_, (weight, metrics)), grads = spec.sum_over(batch, m, one)
  grads = _divided(grads, weight)
  stepped, new_state = optimizers.step(
    spec.policy_optimizer, grads, optimizer_state, trained
  )
  kl, kl_weight = metrics["approx_kl"]
  if target_kl is not None:
    live &= kl <= floats.constant(target_kl, kl.dtype) * kl_weight
  keep = lambda new, old: jnp.where(live, new, old)
  stepped = jax.tree.map(keep, stepped, trained)
  policy = lora.join(stepped, frozen)
  optimizer_state = jax.tree.map(keep, new_state, optimizer_state)
  metrics["grad_norm"] = _norm(grads)
  metrics["stepped"] = (live.astype(jnp.float32), jnp.ones(()))
  return (policy, optimizer_state, live), metrics


def _policy_epochs(spec, state, credit: credit_lib.Credit):
  """All optimizer steps of the policy."""
  config, batch = spec.config, credit.acting
  shape = batch.tokens.tokens.shape
  advantage = to_rows(credit.advantages.advantage, shape)
  fixed = _Fixed(advantage, credit.ref_logp, credit.weight)
  live = jnp.array(True)
  if state.critic is not None:
    live = state.update >= config.critic_warmup
  (policy, optimizer_state, _), metrics = jax.lax.scan(
    functools.partial(_policy_step, spec, batch, fixed),
    (state.policy, state.policy_optimizer, live),
    _order(spec, state, 2, config.actor_epochs),
  )
  # Before the first step learner and sampler hold the same weights, so that
  # what is left of the log-ratio is the gap between the two programs.
  # A mini-batch that holds nothing steps nowhere, and has no gap to tell.
  gaps = metrics.pop("token_gap")
  gap, k3, count = gaps[jnp.argmax(gaps[:, 2] > 0)]
  # Each step is in one mini-batch; the last epoch is the furthest off-policy.
  z_k = jnp.sum(metrics.pop("step_log_ratio")[-shape[0] :], axis=0)
  found = _named("policy", metrics) | {
    "policy/sampler_gap": (gap, count),
    "policy/sampler_k3": (k3, count),
  }
  found |= modes.drift(z_k, batch.table, state.update, spec.staleness)
  return policy, optimizer_state, found


def _named(prefix, metrics):
  """Adds (sum, weight) pairs over the mini-batches and prefixes the names."""
  return {
    f"{prefix}/{name}": jax.tree.map(lambda x: jnp.sum(x, axis=0), pair)
    for name, pair in metrics.items()
  }
