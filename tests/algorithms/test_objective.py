"""The loss of the policy and of the critic."""

import dataclasses
import functools

import base_batch as base
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from marks import some

from steppo_jax.algorithms import estimators, objective
from steppo_jax.algorithms import table as algorithms_table
from steppo_jax.ops import ratios

ALL = list(algorithms_table.ALGORITHMS)
# A critic, a centred ratio, groups, segments, a geometric mean, two heads, a
# teacher.
FEW = ("steppo", "capo", "grpo", "sapo_segment", "gmpo", "vetta", "serl")
RAGGED = reference.ragged(8)
TOKENS, TABLE, VALUE = reference.device_records(RAGGED)
IDS, ACTION = TOKENS.step_ids, TOKENS.step_ids > 0
RNG = np.random.default_rng(0)
VOCAB = 5
NOTHING = np.zeros(IDS.shape, np.float32)
LOGITS = RNG.normal(size=(*IDS.shape, VOCAB)).astype(np.float32)
CHOICE = RNG.integers(0, VOCAB, size=IDS.shape)
REF = -RNG.uniform(0.1, 2, size=IDS.shape).astype(np.float32)
GAP = RNG.normal(size=IDS.shape).astype(np.float32)
EXTRAS = estimators.Extras(teacher_gap=GAP, reference_gap=GAP)
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def row_of(name, **change):
  """A row with an entropy bonus, so that every term is in the loss."""
  change = {"entropy_coef": 0.01, "kl_coef": 0.1, **change}
  return dataclasses.replace(algorithms_table.get(name), **change)


def policy(logits):
  """Log-probability and entropy at each token's own slot."""
  logp = jax.nn.log_softmax(logits)
  at = jnp.take_along_axis(logp, CHOICE[..., None], axis=-1)[..., 0]
  return at, -(jnp.exp(logp) * logp).sum(-1)


def mean_log_ratio(row, logp, tokens):
  if not row.center:
    return None
  z = ratios.log_ratio(logp, tokens.behaviour_logp, tokens.step_ids > 0)
  total, count = ratios.log_ratio_mean(z, tokens.step_ids)
  return total / jnp.maximum(count, 1)


def pair(row, advantage, logp, entropy, tokens, table, mu, ref=REF):
  return objective.policy_loss(
    row,
    advantage,
    logp,
    entropy,
    tokens,
    table,
    mu=mu,
    ref_logp_t=ref,
  )


@functools.cache
def compiled(name):
  row = row_of(name)

  def loss(logits, tokens, table, value, outside):
    # `outside` is 0 on the actions and poison elsewhere.
    logp, entropy = (x + outside for x in policy(logits))
    mu = mean_log_ratio(row, logp, tokens)
    result = objective.advantages(row, tokens, table, value, EXTRAS)
    (total, weight), metrics = pair(
      row, result.advantage, logp, entropy, tokens, table, mu, REF + outside
    )
    return total / weight, metrics

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("name", some(*FEW, slow=ALL))
def test_no_gradient_on_tokens_that_the_policy_did_not_sample(name):
  # A ratio near 1, so that no clip hides the gradient.
  logp, _ = policy(LOGITS)
  tokens = TOKENS.replace(behaviour_logp=np.asarray(logp))
  (loss, metrics), grad = compiled(name)(LOGITS, tokens, TABLE, VALUE, NOTHING)
  assert np.isfinite(loss)
  np.testing.assert_array_equal(np.asarray(grad)[~ACTION], 0)
  assert np.abs(np.asarray(grad)[ACTION]).max() > 0
  for key, (total, weight) in metrics.items():
    assert np.isfinite(total), key
    assert weight > 0, key


@pytest.mark.parametrize("name", ALL)
def test_poison_outside_the_actions_changes_no_bit(name):
  clean = compiled(name)(LOGITS, TOKENS, TABLE, VALUE, NOTHING)
  for poison in (1e30, -np.inf):
    outside = np.where(ACTION, 0, poison).astype(np.float32)
    behaviour = np.where(ACTION, TOKENS.behaviour_logp, poison)
    tokens = TOKENS.replace(behaviour_logp=behaviour.astype(np.float32))
    jax.tree.map(
      np.testing.assert_array_equal,
      compiled(name)(LOGITS, tokens, TABLE, VALUE, outside),
      clean,
    )


@pytest.mark.parametrize("name", ["steppo", "capo", "ppo", "dr_grpo", "gmpo"])
def test_microbatches_add_up_to_the_batch(name):
  row = row_of(name)
  logp, entropy = policy(LOGITS)
  advantage = objective.advantages(row, TOKENS, TABLE, VALUE, EXTRAS).advantage
  mu = mean_log_ratio(row, logp, TOKENS)

  @jax.jit
  def run(tokens):
    return pair(row, advantage, logp, entropy, tokens, TABLE, mu)

  whole = run(TOKENS)
  upper = np.arange(6)[:, None] < 3
  parts = [
    run(TOKENS.replace(step_ids=np.where(rows, IDS, 0)))
    for rows in (upper, ~upper)
  ]
  jax.tree.map(lambda total, *x: close(sum(x), total), whole, *parts)


def test_at_ratio_one_the_step_ratio_is_token_ppo_with_a_mean_of_means():
  logp, entropy = policy(LOGITS)
  tokens = TOKENS.replace(behaviour_logp=np.asarray(logp))
  advantage = RNG.normal(size=9).astype(np.float32)

  def grad(**change):
    row = row_of("steppo", **change)
    loss = lambda logp: pair(
      row, advantage, logp, entropy, tokens, TABLE, None
    )[0][0]
    return jax.jit(jax.grad(loss))(logp)

  close(grad(ratio="step"), grad(ratio="token"))


def test_one_token_a_step_makes_all_ratios_one():
  ids = np.zeros((2, 3), np.int32)
  ids[0, 1], ids[1, 2] = 1, 2
  tokens = jax.tree.map(lambda x: x[:2, :3], TOKENS).replace(
    step_ids=ids, behaviour_logp=np.full((2, 3), -1, np.float32)
  )
  logp = np.float32([[0, -0.5, 0], [0, 0, -2]])
  for power in (0.0, 0.5, 1.0):
    row = row_of("steppo", power=power)
    z = objective.policy_log_ratio(row, logp, tokens, num_steps=4, mu=None)
    close(z, [0, 0.5, -1, 0])


def test_a_step_loss_by_hand():
  # Steps of 2 and 1 tokens; z .2 .4 and -.5; geometric: w = e^.3, e^-.5.
  tokens, table = base.small([2, 1])
  logp = np.float32([[9, 0.2, 0.4], [9, -0.5, 9]])
  row = row_of(
    "steppo", clip_low=0.2, clip_high=0.2, kl_coef=0.0, entropy_coef=0.5
  )
  (total, weight), metrics = objective.policy_loss(
    row,
    np.float32([0, 2, -1]),
    logp,
    np.float32([[9, 1, 3], [9, 4, 9]]),
    tokens,
    table,
    mu=None,
    ref_logp_t=None,
  )
  # 1.2 * -2 (clipped), .8 * 1 (clipped); entropies: means 2 and 4.
  close(weight, 2)
  close(total, -2.4 + 0.8 - 0.5 * (2 + 4))
  ratio = {name: s / w for name, (s, w) in metrics.items()}
  close(ratio["clip_fraction"], 1)
  close(ratio["ratio"], (np.exp(0.3) + np.exp(-0.5)) / 2)
  close(ratio["entropy"], 8 / 3)
  close(ratio["log_ratio_abs"], 0.4)
  close(ratio["advantage"], 0.5)


def test_the_penalty_is_the_mean_of_k3():
  tokens, table = base.small([2, 1])
  logp = np.float32([[9, -1, -1], [9, -1, 9]])
  tokens = tokens.replace(behaviour_logp=logp)
  row = row_of("ppo", kl_coef=0.1, entropy_coef=0.0)
  (total, weight), metrics = objective.policy_loss(
    row,
    np.zeros((2, 3), np.float32),
    logp,
    logp,
    tokens,
    table,
    mu=None,
    ref_logp_t=np.float32([[9, -1.5, -1], [9, -1, 9]]),
  )
  # d = -.5 on one token of three: .106531.
  close(total, 0.0106531)
  close(weight, 3)
  close(metrics["kl_reference"][0], 0.106531)


def test_a_centred_ratio_needs_its_mean():
  with pytest.raises(ValueError, match="needs mu"):
    objective.policy_log_ratio(
      algorithms_table.get("capo"), REF, TOKENS, num_steps=9, mu=None
    )


@pytest.mark.parametrize("name", ["steppo", "ppo"])
def test_value_loss_reads_one_value_per_step_or_per_action_token(name):
  row = algorithms_table.get(name)
  target = objective.advantages(row, TOKENS, TABLE, VALUE, EXTRAS).target
  at = TABLE.boundary if name == "steppo" else None
  flat = VALUE.reshape(-1)
  mask = TABLE.live if name == "steppo" else ACTION
  value = flat[at] if name == "steppo" else np.roll(VALUE, 1, axis=1)

  def run(value_bt, here, tokens):
    return objective.value_loss_terms(
      row, target, value_bt, VALUE, tokens, TABLE,
      boundary_local=TABLE.boundary, here=here, value_clip=None,
    )  # fmt: skip

  (total, weight), metrics = run(VALUE, TABLE.live, TOKENS)
  close(weight, mask.sum())
  close(total, 0.5 * ((value - target) ** 2)[mask].sum())
  close(metrics["value"][0], value[mask].sum())
  # Two halves of the rows add up, and read nothing of each other.
  halves = []
  for low, high in ((0, 3), (3, 6)):
    here = (TABLE.boundary // 10 >= low) & (TABLE.boundary // 10 < high)
    rows = (np.arange(6) >= low) & (np.arange(6) < high)
    tokens = TOKENS.replace(step_ids=np.where(rows[:, None], IDS, 0))
    poison = np.where(rows[:, None], VALUE, 1e30).astype(np.float32)
    halves.append(run(poison, here & TABLE.live, tokens)[0])
  close(sum(x for x, _ in halves), total)
  close(sum(x for _, x in halves), weight)


def test_a_method_without_critic_has_no_value_loss():
  with pytest.raises(ValueError, match="'grpo' has no critic"):
    objective.value_loss_terms(
      algorithms_table.get("grpo"), TABLE.reward, VALUE, VALUE, TOKENS, TABLE,
      boundary_local=TABLE.boundary, here=TABLE.live, value_clip=None,
    )  # fmt: skip


@pytest.mark.slow
def test_four_hyper_parameters_in_one_vmap_are_four_runs():
  logp, entropy = policy(LOGITS)

  def loss(discount, lambda_, clip):
    row = row_of(
      "steppo",
      discount=discount,
      lambda_=lambda_,
      clip_low=clip,
      clip_high=clip,
    )
    credit = objective.advantages(row, TOKENS, TABLE, VALUE, EXTRAS).advantage
    (total, weight), _ = pair(row, credit, logp, entropy, TOKENS, TABLE, None)
    return total / weight

  settings = np.float32(
    [[1, 0.9, 0.5, 0], [1, 0.5, 0.2, 0], [0.1, 0.2, 0.3, 0.5]]
  )
  many = jax.jit(jax.vmap(loss))(*settings)
  for i in range(4):
    close(many[i], loss(*settings[:, i]))


def test_the_loss_has_a_gradient_in_discount_lambda_and_clip_alone():
  logp, entropy = policy(LOGITS)

  def loss(settings, value):
    discount, lambda_, clip = settings
    row = row_of(
      "steppo",
      discount=discount,
      lambda_=lambda_,
      clip_low=clip,
      clip_high=clip,
    )
    credit = objective.advantages(row, TOKENS, TABLE, value, EXTRAS).advantage
    (total, weight), _ = pair(row, credit, logp, entropy, TOKENS, TABLE, None)
    return total / weight

  at = np.float32([0.9, 0.5, 0.2])
  grad, through_critic = jax.jit(jax.grad(loss, argnums=(0, 1)))(at, VALUE)
  np.testing.assert_array_equal(through_critic, np.zeros(VALUE.shape))
  run = jax.jit(loss)
  for i in range(3):
    step = np.zeros(3, np.float32)
    step[i] = 1e-2
    slope = (run(at + step, VALUE) - run(at - step, VALUE)) / 2e-2
    assert abs(grad[i]) > 1e-3
    np.testing.assert_allclose(grad[i], slope, rtol=2e-2, atol=1e-3)
