"""Every golden number about ratios, losses and shaping."""

import base_batch as base
import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax.ops import (
  aggregation,
  groups,
  losses,
  ratios,
  segments,
  shaping,
)


def test_g14_log_ratios(golden):
  case = golden["G14_log_ratios"]
  z, mask = base.f32(case["z"]), np.array(case["mask"]) > 0
  z_t = ratios.log_ratio(z, np.zeros_like(z), mask)
  total, count = ratios.log_ratio_mean(z_t, base.IDS)
  np.testing.assert_allclose(total / count, case["mu_batch"], rtol=1e-5)
  np.testing.assert_array_equal(
    segments.step_count(base.IDS, num_steps=7)[1:], case["L"]
  )
  for name, power, center in (
    ("product", 0.0, False),
    ("geometric", 1.0, False),
    ("gspo_sqrt", 0.5, False),
    ("capo_centered_sqrt", 0.5, True),
  ):
    got = ratios.pooled_log_ratio(
      z, base.IDS, num_steps=7, power=power, center=center
    )
    np.testing.assert_allclose(
      got[1:], case[name], rtol=2e-5, atol=1e-9, err_msg=name
    )


def test_g16_the_gradient_goes_through_the_geometric_mean(golden):
  advantage_t = base.f32(golden["G6_token_gae"]["adv_white"])
  z = base.f32(golden["G14_log_ratios"]["z"])
  advantage_k = segments.step_mean(advantage_t, base.IDS, num_steps=7)

  def loss(z, high):
    log_ratio = ratios.pooled_log_ratio(
      z, base.IDS, num_steps=7, power=1.0, center=False
    )
    loss_k, _ = losses.clipped_surrogate(
      jnp.exp(log_ratio),
      advantage_k,
      clip_low=0.75 * high,
      clip_high=high,
      dual_clip=None,
    )
    total, weight = aggregation.step_mean_loss(
      segments.to_tokens(loss_k, base.IDS), base.IDS, num_steps=7
    )
    return total / weight

  def trick(z, high):
    # Public code: the value of the pooled ratio, the gradient of the token's
    # own, and an advantage for each token.
    log_ratio = ratios.pooled_log_ratio(
      z, base.IDS, num_steps=7, power=1.0, center=False
    )
    fixed = jax.lax.stop_gradient(segments.to_tokens(log_ratio, base.IDS))
    loss_t, _ = losses.clipped_surrogate(
      jnp.exp(z - jax.lax.stop_gradient(z) + fixed),
      advantage_t,
      clip_low=0.75 * high,
      clip_high=high,
      dual_clip=None,
    )
    total, weight = aggregation.step_mean_loss(loss_t, base.IDS, num_steps=7)
    return total / weight

  case = golden["G16_token_adv_with_gspo"]
  base.close(loss(z, 4e-4), case["loss_step_mean_adv"])
  base.close(trick(z, 4e-4), case["loss_sg"])
  apart = jax.grad(loss)(z, 4e-4) - jax.grad(trick)(z, 4e-4)
  base.close(np.abs(apart[base.ACTION]).max(), case["max_abs_grad_diff"])
  case = golden["G16b_token_adv_with_gspo_unclipped"]
  grad, other = jax.grad(loss)(z, 0.5), jax.grad(trick)(z, 0.5)
  base.close(grad[2], case["row2_geo"])
  base.close(other[2], case["row2_sg"])
  apart = np.abs(grad - other)[base.ACTION].max()
  base.close(apart, case["max_abs_grad_diff"])
  np.testing.assert_array_equal(np.asarray(grad)[~base.ACTION], 0)


def test_g18_cispo(golden):
  # Ratios 2 .5 2 5 with A = 1 -1 -1 -1, clipped to [.8, 1.28]; old logp 0.
  case = golden["G18_cispo"]
  advantage = base.f32([1, -1, -1, -1])

  def loss(logp):
    x, _ = losses.cispo(
      logp, jnp.exp(logp), advantage, clip_low=0.2, clip_high=0.28
    )
    return x.mean()

  value, grad = jax.value_and_grad(loss)(jnp.log(base.f32([2, 0.5, 2, 5])))
  base.close(value, case["loss"])
  base.close(grad, case["grad"][0])


def test_g19_gmpo(golden):
  # z = log 2, log .5, log 2, log 5, clipped at .4 where A > 0 gains:
  # (.4 - .693147 + .4 + .4) / 4 = .126713; exp = 1.135091.
  case = golden["G19_gmpo"]
  ids, advantage = np.array([[1, 1, 1, 1]]), np.ones((1, 4), np.float32)

  def loss(z):
    z, _ = losses.log_clip(
      z, advantage, clip_low=case["clip_log"], clip_high=case["clip_log"]
    )
    pooled = ratios.pooled_log_ratio(
      z, ids, num_steps=2, power=1.0, center=False
    )
    return -jnp.exp(pooled[1])

  value, grad = jax.value_and_grad(loss)(jnp.log(base.f32([[2, 0.5, 2, 5]])))
  base.close(value, case["loss"])
  base.close(grad, case["grad"])


def test_g21_g22_kl_and_value_loss(golden):
  case = golden["G21_kl"]
  logp = base.f32(case["logp_minus_ref"])
  for name in ("k1", "k2", "k3"):
    got = getattr(losses, f"kl_{name}")(logp, np.zeros_like(logp))
    base.close(got, case[name])
  case = golden["G22_value_loss"]
  loss, clipped = losses.value_loss(
    base.f32(case["vpred"]),
    base.f32(case["vold"]),
    base.f32(case["ret"]),
    value_clip=case["cliprange"],
  )
  base.close(loss.mean(), case["loss"])
  base.close(clipped.mean(), case["clipfrac"])


def test_g23_g35_teacher_weights(golden):
  case = golden["G23_serl"]
  mask = np.array(case["action_mask"]) > 0
  got = shaping.reweight_band(
    base.f32(case["adv_in"]),
    base.f32(case["gap"]),
    mask,
    low=0.8,
    high=1.2,
    mix=case["lambda_eff"],
  )
  base.close(got, case["adv_out"])
  case = golden["G35_stepopsd"]
  for mix, expected in ((case["lambda_mix"], "adv_out"), (1.0, "weight")):
    got = shaping.reweight_sigmoid(
      base.f32(case["adv_in"]),
      base.f32(case["gap"]),
      np.ones((2, 4), bool),
      low=1 - case["alpha_clip"],
      high=1 + case["alpha_clip"],
      mix=mix,
    )
    base.close(got if mix < 1 else np.abs(got), case[expected])


def test_g25_vetta(golden):
  case = golden["G25_vetta"]
  within = segments.centered(base.f32(case["token_adv"]), base.IDS, num_steps=7)
  turn = segments.to_tokens(base.f32([9, *case["turn_adv"]]), base.IDS)
  base.close(turn + case["alpha"] * within, case["fused"])


def test_g26_packed_row_gives_the_same_ratios(golden):
  case = golden["G26_packed"]
  ids = (np.array(case["token_step"]) + 1) % 7
  got = ratios.pooled_log_ratio(
    base.f32(case["z"])[None], ids[None], num_steps=4, power=1.0, center=False
  )
  np.testing.assert_allclose(got[1:], case["step_log_ratio"], rtol=1e-5)
  np.testing.assert_array_equal(got[0], 0)


def test_g27_pad_rows_do_not_dilute(golden):
  # Losses 1, 2, 3 on three steps; a fourth row without action tokens.
  loss = base.f32([[1, 1], [2, 2], [3, 3], [0, 0]])
  ids = np.array([[1, 1], [2, 0], [3, 3], [0, 0]])
  total, weight = aggregation.step_mean_loss(loss, ids, num_steps=5)
  case = golden["G27_pad_bias"]
  base.close(total / weight, case["true_mean"])
  # Public code keeps the mask of the row that fills the batch up.
  ids[3, 0] = 4
  total, weight = aggregation.step_mean_loss(loss, ids, num_steps=5)
  base.close(total / weight, case["reference_with_1_dup_row_adv0"])


def test_g31_dapo(golden):
  case = golden["G31_dapo"]
  overlong = case["overlong"]
  penalty = shaping.overlong_penalty(
    np.array(overlong["lengths"]),
    max_length=overlong["Lmax"],
    cache=overlong["Lcache"],
  )
  base.close(penalty, overlong["penalty"])
  group = np.repeat(np.arange(3, dtype=np.int32), 4)
  keep = groups.group_spread(
    base.f32(case["rewards"]), group, np.ones(12, bool), num_groups=3
  )
  np.testing.assert_array_equal(keep, case["keep_group"])


def test_g33_clip_occupancy(golden):
  # 2,000 steps of L tokens with independent log-ratios of deviation s.
  rng = np.random.default_rng(0)
  for row in golden["G33_clip_occupancy"]["rows"]:
    z = rng.normal(0, row["s"], size=(2000, row["L"])).astype(np.float32)
    ids = np.arange(1, 2001)[:, None] * np.ones((1, row["L"]), np.int32)
    for name, power, center, low, high in (
      ("geo_3e4_4e4", 1.0, False, 3e-4, 4e-4),
      ("sqrt_1e3", 0.5, True, 1e-3, 1e-3),
    ):
      log_ratio = ratios.pooled_log_ratio(
        z, ids, num_steps=2001, power=power, center=center
      )[1:]
      ratio = np.exp(np.asarray(log_ratio))
      outside = ((ratio < 1 - low) | (ratio > 1 + high)).mean()
      assert abs(outside - row[name]) < 0.03, (row, name)
