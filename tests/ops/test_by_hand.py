"""Worked examples: the golden numbers worth knowing, typed in."""

import base_batch as base
import numpy as np

from steppo_jax.ops import groups, losses, ratios


def test_step_gae_by_hand():
  # Trajectory A: deltas .9*.4-.5 = -.14, .9*.7-.4 = .23, 1-.7 = .3; then
  # .23 + .72*.3 = .446 and -.14 + .72*.446 = .18112. B: .5+.9*.1-.2 = .39 and
  # -.5-.1 = -.6, so .39 + .72*-.6 = -.042. C: 2-1.5 = .5.
  advantage, target = base.step_gae(0.9, 0.8)
  base.close(advantage[1:], [0.18112, 0.446, 0.3, -0.042, -0.6, 0.5])
  base.close(target[1:], [0.68112, 0.846, 1.0, 0.158, -0.5, 2.0])


def test_token_gae_by_hand():
  # Last step of A, tokens from the end: 1-.9 = .1; .9*.9-.8+.72*.1 = .082.
  # First token of the step feeds the last token of the one before:
  # .9*.7-.6+.72*-.004091 = .027054.
  advantage, _ = base.token_gae()
  base.close(advantage[2], [-0.004091, 0.02904, 0.082, 0.1])
  base.close(advantage[1], [0.092825, 0.059479, 0.027054, 0])
  # The observation inside the response of B0 takes no time and no credit.
  base.close(advantage[3], [0.040336, 0, -0.0412, 0])


def test_pooled_log_ratios_by_hand():
  # A1: z = .003 .001 -.001, L 3: sum .003, /sqrt 3 = .00173205, /3 = .001.
  z = np.zeros((6, 4), np.float32)
  z[1, :3] = [0.003, 0.001, -0.001]
  z[~base.ACTION] = 0.7
  pool = lambda power: ratios.pooled_log_ratio(
    z, base.IDS, num_steps=7, power=power, center=False
  )
  np.testing.assert_allclose(pool(0.0)[2], 0.003, rtol=1e-6)
  np.testing.assert_allclose(pool(0.5)[2], 0.00173205081, rtol=1e-6)
  np.testing.assert_allclose(pool(1.0)[2], 0.001, rtol=1e-6)


def test_outcome_scores_by_hand():
  # Returns 1 and 0: mean .5, deviation .707107. C is alone.
  args = base.f32([1, 0, 2]), np.array([0, 0, 1]), np.ones(3, bool)
  score = lambda singleton: groups.group_zscore(
    *args, num_groups=3, eps=1e-6, singleton=singleton
  )
  base.close(score("zero"), [0.707106, -0.707106, 0])
  base.close(score("raw"), [0.707106, -0.707106, 1.999998])
  base.close(groups.group_center(*args, num_groups=3), [0.5, -0.5, 0])
  base.close(groups.group_leave_one_out(*args, num_groups=3), [1, -1, 0])


def test_kl_by_hand():
  # d = -.5: e^-.5 - 1 + .5 = .106531; d = .5: e^.5 - 1.5 = .148721.
  logp, ref = base.f32([0.5, -0.5, 0]), base.f32([0, 0, 0])
  base.close(losses.kl_k1(logp, ref), [0.5, -0.5, 0])
  base.close(losses.kl_k2(logp, ref), [0.125, 0.125, 0])
  base.close(losses.kl_k3(logp, ref), [0.106531, 0.148721, 0])


def test_value_loss_by_hand():
  # 2 is clipped to 1.5: (1.5-3)^2 = 2.25 > 1; 1 is not: 1. Half the mean.
  loss, clipped = losses.value_loss(
    base.f32([2, 1]), base.f32([1, 1.2]), base.f32([3, 0]), value_clip=0.5
  )
  base.close(loss, [1.125, 0.5])
  np.testing.assert_array_equal(clipped, [True, False])
