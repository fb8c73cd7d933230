"""Every golden number about returns, advantages and groups.

What public code makes of a case where ours differs on purpose is worked out
here, from our functions or beside them.
"""

import pathlib
import re

import base_batch as base
import numpy as np

from steppo_jax.algorithms import estimators
from steppo_jax.ops import groups, returns, segments, stats


def test_every_golden_case_is_read_by_a_test(golden):
  files = pathlib.Path(__file__).parent.glob("test_golden_*.py")
  read = {
    name
    for file in files
    for name in re.findall(r'golden\["(\w+)"\]', file.read_text())
  }
  assert read == set(golden)


def test_g1_step_gae(golden):
  case = golden["G1_step_gae"]
  base.close(base.REWARD[1:], case["r"])
  base.close(base.VALUE[1:], case["v"])
  np.testing.assert_array_equal(base.TRAJECTORY[1:], case["traj"])
  delta, _ = base.step_gae(case["gamma"], 0.0)
  base.close(delta[1:], case["delta"])
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
  # Public code takes 0 for its value and keeps it in the moments.
  advantage, _ = returns.step_gae(
    base.REWARD,
    np.where(acted, base.VALUE, 0),
    base.LAST,
    base.NO_BOOTSTRAP,
    discount=0.9,
    lambda_=0.8,
  )
  base.close(advantage[1:], case["reference_adv_raw"])
  white = stats.whiten(advantage, np.arange(7) > 0)
  base.close(white[1:], case["reference_white"])


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
  white = stats.whiten(advantage, base.ACTION)
  base.close(white, case["adv_white"])
  # Public code shifts and scales what is masked, too: 0 to -mean / deviation.
  mean, variance = stats.masked_moments(advantage, base.ACTION)
  base.close(-mean / np.sqrt(variance), case["masked_slot_value"])
  np.testing.assert_array_equal(np.asarray(white)[~base.ACTION], 0)


def test_g7_outcome(golden):
  case = golden["G7_outcome"]
  total = groups.group_sum(
    base.REWARD, base.TRAJECTORY, np.arange(7) > 0, num_groups=3
  )
  base.close(total, case["traj_total"])
  args = base.f32(case["traj_total"]), np.array(case["group"]), np.ones(3, bool)
  score = groups.group_zscore(*args, num_groups=2, eps=1e-6, singleton="raw")
  base.close(score, case["grpo"])
  # C is alone and keeps its return where public code is followed.
  run = lambda name, **constants: np.asarray(
    getattr(estimators, name)(
      *base.records(), None, estimators.Extras(), discount=1.0, lambda_=1.0,
      singleton="raw", **constants,
    ).advantage
  )  # fmt: skip
  for_steps = lambda x: np.array(x)[base.TRAJECTORY[1:]]
  base.close(run("grpo", eps=1e-6)[1:], for_steps(case["grpo"]))
  base.close(run("dr_grpo")[1:], for_steps(case["dr_grpo"]))
  base.close(run("rloo", kl_reward=0.0)[1:], for_steps(case["rloo"]))
  # Over the tokens of each trajectory: 9, 4 and 1 of them; column 0 is prompt.
  whitened = run("reinforce_pp_baseline")[:, 1]
  base.close(whitened, for_steps(case["rfpp_baseline_per_traj"]))


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
  # Public code makes thousands of an equal group; ours makes exactly 0.
  assert case["fp32_residue_adv"] < -2000
  np.testing.assert_array_equal(score([0.3] * 7), np.zeros(7))
  base.close(score([1, 0]), case["pair"])
  base.close(score([1] + [0] * 7), case["one_of_eight"])
  # Against the mean and the deviation of the others, which are all equal for
  # the only success; ours divides by the deviation of all four, .5.
  x = np.array([1.0, 0, 0, 0])
  others = np.array([np.delete(x, i) for i in range(4)])
  alone = (x - others.mean(1)) / (others.std(1, ddof=1) + 1e-6)
  np.testing.assert_allclose(alone, case["loo_then_std"], rtol=2e-6)
  base.close(score(x), np.array([1.5, -0.5, -0.5, -0.5]))


def test_g11_hgpo(golden):
  case = golden["G11_hgpo"]
  got = estimators.hgpo(
    *base.records(),
    None,
    estimators.Extras(),
    discount=0.95,
    lambda_=1.0,
    alpha=case["alpha"],
    history=case["H"],
  )
  base.close(got.advantage[1:], case["adv"])


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
  reward, live = base.f32(case["step_reward"]), np.ones(6, bool)
  group = np.array([0, 0, 0, 0, 0, 1])
  alone = group == 1  # keeps its reward in public code
  got = groups.group_leave_one_out(reward, group, live, num_groups=2)
  np.testing.assert_array_equal(got[alone], 0)
  base.close(np.where(alone, reward, got), case["all_rows_loo"])
  # Public code takes the mean over the first row of each trajectory, and their
  # number: 2 (r - 0) in group 0, whose first rows hold .1 and -.1.
  first = np.diff(base.TRAJECTORY[1:], prepend=-1) > 0
  mean = groups.group_mean(reward, group, first, num_groups=2)[group]
  count = groups.group_count(group, first, num_groups=2)[group]
  got = (reward - mean) * count / np.maximum(count - 1, 1)
  base.close(np.where(alone, reward, got), case["code_first_row_baseline"])
