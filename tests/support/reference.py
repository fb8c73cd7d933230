"""Slow loops in float64, written from the papers alone, and ragged batches.

Nothing here uses the package's functions, only its records: it is what they are
held against.
"""

from typing import NamedTuple

import numpy as np

from steppo_jax import batch as records


class Ragged(NamedTuple):
  """A random batch: 6 rows of 10 tokens, 9 step slots, fixed shapes."""

  step_ids: np.ndarray
  parent: np.ndarray
  live: np.ndarray
  reward: np.ndarray
  last: np.ndarray
  truncated: np.ndarray
  bootstrap: np.ndarray
  boundary: np.ndarray
  bootstrap_at: np.ndarray
  trajectory: np.ndarray
  group: np.ndarray
  anchor: np.ndarray


def ragged(seed, rows=6, columns=10, slots=9):
  """Trajectories of uneven length; empty steps; steps interleaved in rows."""
  rng = np.random.default_rng(seed)
  steps = int(rng.integers(0, slots))
  live = np.arange(slots) <= steps
  live[0] = False
  cut = rng.uniform(size=slots) < 0.4
  last = ~live | cut
  if steps:
    last[steps] = True
  starts = live & np.roll(last, 1)
  starts[1] = live[1]
  trajectory = np.where(live, np.cumsum(starts) - 1, 0)
  group_of = rng.integers(0, 3, size=slots)
  step_ids = np.zeros((rows, columns), np.int32)
  home = rng.integers(0, rows, size=slots)
  for row in range(rows):
    mine = [k for k in range(1, steps + 1) if home[k] == row]
    # Column 0 is a prompt token; a token belongs to any step of its row.
    for column in range(1, columns):
      if mine and rng.uniform() < 0.5:
        step_ids[row, column] = rng.choice(mine)
  parent = np.tile(np.arange(columns) - 1, (rows, 1)).astype(np.int32)
  boundary = rng.integers(0, rows * columns, size=slots)
  for k in range(1, slots):
    where = np.argwhere(step_ids == k)
    if len(where):
      row, column = where[0]
      boundary[k] = row * columns + parent[row, column]
  truncated = live & last & (rng.uniform(size=slots) < 0.5)
  return Ragged(
    step_ids=step_ids,
    parent=parent,
    live=live,
    reward=np.where(live, rng.normal(size=slots), 0).astype(np.float32),
    last=last,
    truncated=truncated,
    bootstrap=np.where(truncated, rng.normal(size=slots), 0).astype(np.float32),
    boundary=boundary.astype(np.int32),
    bootstrap_at=rng.integers(0, rows * columns, size=slots).astype(np.int32),
    trajectory=trajectory.astype(np.int32),
    group=np.where(live, group_of[trajectory], 0).astype(np.int32),
    anchor=np.where(live, _states(group_of[trajectory], rng), 0),
  )


def _states(group, rng):
  """Three states in each group, numbered over all of them."""
  pairs = np.stack([group, rng.integers(0, 3, size=len(group))])
  numbers = np.unique(pairs, axis=1, return_inverse=True)[1]
  return numbers.reshape(-1).astype(np.int32)


def step_lists(last, live):
  """The step numbers of each trajectory, in order."""
  lists, current = [], []
  for k in range(len(last)):
    if not live[k]:
      continue
    current.append(k)
    if last[k]:
      lists.append(current)
      current = []
  return lists


def gae(reward, value, bootstrap, discount, lambda_):
  """Advantages of one trajectory, by the definition as a double sum."""
  n = len(reward)
  value = [*map(float, value), float(bootstrap)]
  delta = [
    float(reward[k]) + discount * value[k + 1] - value[k] for k in range(n)
  ]
  return [
    sum((discount * lambda_) ** (j - k) * delta[j] for j in range(k, n))
    for k in range(n)
  ]


def step_gae(reward, value, last, live, bootstrap, discount, lambda_):
  advantage = np.zeros(len(reward))
  for steps in step_lists(last, live):
    advantage[steps] = gae(
      reward[steps], value[steps], bootstrap[steps[-1]], discount, lambda_
    )
  return advantage


def discounted_returns(reward, last, live, bootstrap, discount):
  result = np.zeros(len(reward))
  for steps in step_lists(last, live):
    for i, k in enumerate(steps):
      tail = discount ** (len(steps) - i) * float(bootstrap[steps[-1]])
      result[k] = tail + sum(
        discount**j * float(reward[m]) for j, m in enumerate(steps[i:])
      )
  return result


def token_gae(
  reward, value, step_ids, last, live, bootstrap, discount, lambda_
):
  """One list of action tokens per trajectory, then the same double sum."""
  advantage = np.zeros(step_ids.shape)
  for steps in step_lists(last, live):
    where, rewards = [], []
    for k in steps:
      tokens = [tuple(x) for x in np.argwhere(step_ids == k)]
      where += tokens
      rewards += [0.0] * len(tokens)
      if rewards:
        rewards[-1] += float(reward[k])
    if where:
      values = [value[at] for at in where]
      tail = bootstrap[steps[-1]]
      result = gae(rewards, values, tail, discount, lambda_)
      for at, a in zip(where, result, strict=True):
        advantage[at] = a
  return advantage


def whiten(x, mask):
  x = np.asarray(x, np.float64)
  result = np.zeros(x.shape)
  inside = x[mask]
  if len(inside) > 1 and np.ptp(inside) > 1e-6 * abs(inside).max():
    std = np.sqrt(((inside - inside.mean()) ** 2).sum() / (len(inside) - 1))
    result[mask] = (inside - inside.mean()) / (std + 1e-8)
  return result


def group_scores(x, group, live, eps):
  """Centred, z-scored and leave-one-out, each by its definition."""
  x = np.asarray(x, np.float64)
  center, zscore, leave = np.zeros((3, len(x)))
  for n in range(len(x)):
    members = [m for m in range(len(x)) if live[m] and group[m] == group[n]]
    values = x[members]
    if not live[n] or len(members) < 2 or np.ptp(values) == 0:
      continue
    others = [x[m] for m in members if m != n]
    center[n] = x[n] - values.mean()
    zscore[n] = center[n] / (values.std(ddof=1) + eps)
    leave[n] = x[n] - np.mean(others)
  return center, zscore, leave


def pooled_log_ratio(z, step_ids, num_steps, power, center):
  action = step_ids > 0
  mu = z[action].mean() if center and action.any() else 0.0
  result = np.zeros(num_steps)
  for k in range(1, num_steps):
    inside = z[step_ids == k].astype(np.float64)
    if len(inside):
      result[k] = mu + (inside - mu).sum() / len(inside) ** power
  return result


def clipped_surrogate(ratio, advantage, low, high, dual):
  loss = np.zeros(len(ratio))
  for i, (w, a) in enumerate(zip(ratio, advantage, strict=True)):
    near = min(max(w, 1 - low), 1 + high)
    objective = min(w * a, near * a)
    if dual is not None and a < 0:
      objective = max(objective, dual * a)
    loss[i] = -objective
  return loss


def aggregate(name, loss, step_ids, trajectory, constant):
  """Mean loss over a whole batch, by the words of each name."""
  steps = {
    k: loss[step_ids == k].astype(np.float64)
    for k in range(1, len(trajectory))
    if (step_ids == k).any()
  }
  if not steps:
    return 0.0
  by_trajectory = {}
  for k, tokens in steps.items():
    by_trajectory.setdefault(trajectory[k], []).append(tokens)
  episodes = by_trajectory.values()
  return {
    "token_mean": lambda: np.concatenate([*steps.values()]).mean(),
    "step_mean_loss": lambda: np.mean([x.mean() for x in steps.values()]),
    "trajectory_step_mean": lambda: np.mean(
      [np.mean([x.mean() for x in episode]) for episode in episodes]
    ),
    "trajectory_token_mean": lambda: np.mean(
      [np.concatenate(episode).mean() for episode in episodes]
    ),
    "token_sum_over_constant": lambda: np.mean(
      [np.concatenate(episode).sum() / constant for episode in episodes]
    ),
  }[name]()


def hgpo(anchors, rewards, discount, alpha, history, scale, base_group, eps):
  """Advantages [S] of the steps of one group, in order.

  Args:
    anchors: The anchors of the steps of each episode.
    rewards: What the last step of each episode earns.
  """
  gain, level_of = [], {}
  at = 0
  for line, reward in zip(anchors, rewards, strict=True):
    for k in range(len(line)):
      gain.append(reward * discount ** (len(line) - 1 - k))
      for h in range(1, min(history, k) + 2):
        key = tuple(line[k - h + 1 : k + 1])
        level_of.setdefault(key, []).append(at)
      at += 1

  def compared(numbers):
    numbers = np.array(numbers, np.float64)
    far = numbers - numbers.mean()
    far[abs(far) < 1e-5] = 0  # The rewards are whole numbers.
    if scale == "none" or not far.any():
      return far
    return far / (np.sqrt((far**2).mean()) + eps)

  terms = [[] for _ in gain]
  if base_group:
    score = np.repeat(compared(rewards), [len(line) for line in anchors])
    for k, x in enumerate(score):
      terms[k].append((1.0, x))
  for key, members in level_of.items():
    score = compared([gain[k] for k in members])
    for k, x in zip(members, score, strict=True):
      terms[k].append(((len(key) + 1) ** alpha, x))
  found = []
  for own in terms:
    kept = [(w, x) for w, x in own if x != 0]
    weight = sum(w for w, _ in kept)
    found.append(sum(w * x for w, x in kept) / weight if kept else 0.0)
  return np.array(found)


def device_records(batch):
  """The same batch as the package's records, and a critic's output."""
  rng = np.random.default_rng(int(abs(batch.reward).sum() * 1e6))
  shape = batch.step_ids.shape
  behaviour = -rng.uniform(0.1, 2, size=shape)
  tokens = records.TokenBatch(
    tokens=np.zeros(shape, np.int32),
    positions=np.zeros(shape, np.int32),
    parent=batch.parent,
    subtree_end=np.full(shape, shape[1], np.int32),
    step_ids=batch.step_ids,
    behaviour_logp=np.where(batch.step_ids > 0, behaviour, 1e30).astype("f4"),
  )
  table = records.StepTable(
    live=batch.live,
    reward=batch.reward,
    num_tokens=np.bincount(
      batch.step_ids[batch.step_ids > 0], minlength=len(batch.live)
    ).astype(np.int32),
    last=batch.last,
    truncated=batch.truncated,
    boundary=batch.boundary,
    bootstrap_at=batch.bootstrap_at,
    trajectory=batch.trajectory,
    group=batch.group,
    anchor=batch.anchor,
    success=batch.live & (batch.trajectory % 2 == 0),
  )
  return tokens, table, rng.normal(size=shape).astype(np.float32)
