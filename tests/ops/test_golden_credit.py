"""Every golden number about returns, advantages and groups."""

import base_batch as base
import jax.numpy as jnp
import numpy as np

from steppo_jax.ops import groups, returns, segments, stats


def test_g1_step_gae(golden):
  case = golden["G1_step_gae"]
  advantage, target = base.step_gae(case["gamma"], case["lam"])
  base.close(advantage[1:], case["adv_raw"])
  base.close(target[1:], case["ret"])
  mean, variance = stats.masked_moments(advantage, np.arange(7) > 0)
  base.close(mean, case["adv_mean"])
  base.close(np.sqrt(variance), case["adv_std_ddof1"])
  base.close(stats.whiten(advantage, np.arange(7) > 0)[1:], case["adv_white"])


def test_g1b_whitening_over_tokens_is_not_whitening_over_steps(golden):
  advantage, _ = base.step_gae(0.9, 0.8)
  white_t = stats.whiten(segments.to_tokens(advantage, base.IDS), base.ACTION)
  base.close(white_t[:, 0], golden["G1b_same_adv_token_whitened"]["per_step"])


def test_g1c_undiscounted_is_monte_carlo(golden):
  case = golden["G1c_gamma1_lam1"]
  advantage, target = base.step_gae(1.0, 1.0)
  base.close(advantage[1:], case["adv_raw"])
  base.close(target[1:], case["mc_return"])
  gain = returns.discounted_returns(
    base.REWARD, base.LAST, base.NO_BOOTSTRAP, discount=1.0
  )
  base.close(gain[1:], case["mc_return"])


def test_g3_empty_step_stays_in_the_scan_and_leaves_the_moments(golden):
  case = golden["G3_empty_step"]
  advantage, _ = base.step_gae(0.9, 0.8)
  acted = np.array([0, 1, 0, 1, 1, 1, 1], bool)
  base.close(advantage[1:], case["proposed_adv_raw"])
  base.close(stats.whiten(advantage, acted)[1:], case["proposed_white"])


def test_g5_a_duplicated_last_step_changes_all_before(golden):
  case = golden["G5_alfworld_duplicate_terminal"]
  run = lambda reward, value: returns.step_gae(
    base.f32(reward),
    base.f32(value),
    np.arange(len(value)) == len(value) - 1,
    np.zeros(len(value), np.float32),
    discount=0.9,
    lambda_=0.8,
  )[0]
  base.close(run([0, 0, 1], [0.5, 0.4, 0.7]), case["nodup_adv_raw"])
  base.close(run([0, 0, 0, 1], [0.5, 0.4, 0.7, 0.7]), case["dup_adv_raw"])


def test_g6_token_gae(golden):
  case = golden["G6_token_gae"]
  advantage, target = base.token_gae()
  base.close(advantage, case["adv_raw"])
  base.close(target, case["ret"])
  base.close(stats.whiten(advantage, base.ACTION), case["adv_white"])


def test_g7_outcome(golden):
  case = golden["G7_outcome"]
  total = groups.group_sum(
    base.REWARD, base.TRAJECTORY, np.arange(7) > 0, num_groups=3
  )
  base.close(total, case["traj_total"])
  args = base.f32(case["traj_total"]), np.array(case["group"]), np.ones(3, bool)
  score = groups.group_zscore(*args, num_groups=2, eps=1e-6, singleton="raw")
  base.close(score, case["grpo"])
  center = groups.group_center(*args, num_groups=2)
  base.close(center[:2], case["dr_grpo"][:2])
  leave = groups.group_leave_one_out(*args, num_groups=2)
  base.close(leave[:2], case["rloo"][:2])
  # Over the tokens of each trajectory: 9, 4 and 1 of them. C keeps its return.
  parity = jnp.asarray([*center[:2], 2.0])
  score_t = segments.to_tokens(parity[base.TRAJECTORY], base.IDS)
  white_t = stats.whiten(score_t, base.ACTION)
  expected = np.array(case["rfpp_baseline_per_traj"])
  base.close(white_t[:, 0], expected[base.TRAJECTORY[1:]])


def test_g9_no_deviation_explodes(golden):
  case = golden["G9_std_hazards"]
  score = lambda x: groups.group_zscore(
    base.f32(x),
    np.zeros(len(x), np.int32),
    np.ones(len(x), bool),
    num_groups=1,
    eps=1e-6,
    singleton="zero",
  )
  np.testing.assert_array_equal(score([0.1] * 4), case["all_equal"])
  # The public code makes -2075 of this one.
  np.testing.assert_array_equal(score([0.3] * 7), np.zeros(7))
  base.close(score([1, 0]), case["pair"])
  base.close(score([1] + [0] * 7), case["one_of_eight"])


def test_g29_reward_per_step_index_is_a_group(golden):
  case = golden["G29_sapo_rec_reconstruction"]
  reward = base.f32(case["step_reward"])
  index = np.tile(np.arange(3, dtype=np.int32), 4)
  got = groups.group_zscore(
    reward.reshape(-1),
    index,
    np.ones(12, bool),
    num_groups=3,
    eps=1e-6,
    singleton="zero",
  )
  base.close(got.reshape(4, 3), case["adv"])


def test_g32_discount_counts_steps(golden):
  # A reward at the end of T steps of L tokens, seen from the first token.
  for case in golden["G32_discount_horizon"]["cases"]:
    steps, length = case["T"], case["L"]
    last = np.arange(steps) == steps - 1
    reward, none = base.f32(last), np.zeros(steps, np.float32)
    gain = returns.discounted_returns(
      reward, last, none, discount=case["gamma"]
    )
    np.testing.assert_allclose(gain[0], case["step_first"], rtol=1e-5)
    tokens = case["gamma"] ** (steps * length - 1)
    np.testing.assert_allclose(tokens, case["token_first"], rtol=1e-5)


def test_g34_leave_one_out_over_all_rows_of_the_group(golden):
  case = golden["G34_istar_step_rloo"]
  got = groups.group_leave_one_out(
    base.f32(case["step_reward"]),
    np.array([0, 0, 0, 0, 0, 1]),
    np.ones(6, bool),
    num_groups=2,
  )
  base.close(got[:5], case["all_rows_loo"][:5])
