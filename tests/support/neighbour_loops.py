"""Slow loops in float64 for the methods that stand beside StepPO.

Written from the papers alone, like those of `reference`.
"""

import math

import numpy as np
import reference

sigmoid = lambda x: 1 / (1 + math.exp(-x))


def focus_weight(energy, reasoning, action, alpha, beta):
  weight = np.zeros(energy.shape)
  found = [float(energy[at]) for at in zip(*np.nonzero(action), strict=True)]
  mean = sum(found) / max(len(found), 1)
  std = math.sqrt(sum((x - mean) ** 2 for x in found) / max(len(found), 1))
  for at in np.ndindex(energy.shape):
    if action[at]:
      z = (float(energy[at]) - mean) / std if std > 0 else 0.0
      weight[at] = 1 + beta * sigmoid(z)
    elif reasoning[at]:
      weight[at] = alpha
  return weight


def equal_step_scale(advantage, step_ids, trajectory, limit):
  scale = np.ones(len(trajectory))
  sizes = {
    k: np.abs(advantage[step_ids == k].astype(np.float64)).mean()
    for k in range(1, len(trajectory))
    if (step_ids == k).any()
  }
  for k, size in sizes.items():
    peers = [m for j, m in sizes.items() if trajectory[j] == trajectory[k]]
    if len(peers) > 1:
      factor = np.mean(peers) / (size + 1e-6)
      scale[k] = min(max(factor, 1 / limit), limit)
  return scale


def belief_filter(evidence, success, advantage, lists, mix, band, decay):
  """Over lists of the steps of each trajectory."""
  belief, shaped = np.zeros((2, len(evidence)))
  for steps in lists:
    start = min(max(float(success[steps[0]]), 1e-3), 1 - 1e-3)
    prior, gathered, moves = math.log(start / (1 - start)), 0.0, []
    before = start
    for k in steps:
      gathered = decay * gathered + float(evidence[k])
      belief[k] = sigmoid(prior + gathered)
      moves.append(np.sign(advantage[k]) * (belief[k] - before))
      before = belief[k]
    std = np.std(moves)
    for k, q in zip(steps, moves, strict=True):
      z = (q - np.mean(moves)) / std if std > 0 else 0.0
      weight = min(max(1 + band * z, 1 - band), 1 + band)
      shaped[k] = float(advantage[k]) * ((1 - mix) + mix * weight)
  return belief, shaped


def group_by_index(x, group, index, live, eps, divide):
  result = np.zeros(len(x))
  for k in np.flatnonzero(live):
    peers = live & (group == group[k]) & (index == index[k])
    values = x[peers].astype(np.float64)
    result[k] = float(x[k]) - values.mean()
    if divide:
      result[k] /= values.std() + eps
  return result


def turn_and_token_gae(
  reward, turn_value, token_value, step_ids, last, live, bootstraps, alpha,
  turns, tokens,
):  # fmt: skip
  """`bootstraps` [2, S]; `turns` and `tokens` are (discount, lambda)."""
  turn = reference.step_gae(
    reward, turn_value, last, live, bootstraps[0], *turns
  )
  token = reference.token_gae(
    reward, token_value, step_ids, last, live, bootstraps[1], *tokens
  )
  fused = np.zeros(step_ids.shape)
  for k in range(1, len(reward)):
    mine = step_ids == k
    if mine.any():
      fused[mine] = turn[k] + alpha * (token[mine] - token[mine].mean())
  acted = step_ids > 0
  return turn, turn + turn_value, np.where(acted, token + token_value, 0), fused
