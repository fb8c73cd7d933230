"""The batch behind most golden numbers.

Trajectories A (3 steps), B (2) and C (1); A and B are one group, C is alone.
Row r holds step r + 1, in the order A0 A1 A2 B0 B1 C0; row 3 has an observation
inside its response. Masked slots hold 9.
"""

import numpy as np

from steppo_jax import batch
from steppo_jax.ops import returns

# Numbers in the file are rounded to 6 digits.
close = lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1.1e-6)
f32 = lambda x: np.asarray(x, np.float32)

MASK = np.array(
  [
    [1, 1, 0, 0],
    [1, 1, 1, 0],
    [1, 1, 1, 1],
    [1, 0, 1, 0],
    [1, 1, 0, 0],
    [1, 0, 0, 0],
  ]
)
IDS = (MASK * np.arange(1, 7)[:, None]).astype(np.int32)
ACTION = IDS > 0
LAST = np.array([1, 0, 0, 1, 0, 1, 1], bool)
TRAJECTORY = np.array([0, 0, 0, 0, 1, 1, 2], np.int32)
COUNT = np.array([0, 2, 3, 4, 2, 2, 1], np.int32)
REWARD = f32([0, 0, 0, 1, 0.5, -0.5, 2])
VALUE = f32([0, 0.5, 0.4, 0.7, 0.2, 0.1, 1.5])
NO_BOOTSTRAP = np.zeros(7, np.float32)
TOKEN_VALUE = f32(
  [
    [0.5, 0.45, 9, 9],
    [0.4, 0.5, 0.6, 9],
    [0.7, 0.75, 0.8, 0.9],
    [0.2, 9, 0.3, 9],
    [0.1, 0, 9, 9],
    [1.5, 9, 9, 9],
  ]
)


def step_gae(discount, lambda_):
  return returns.step_gae(
    REWARD, VALUE, LAST, NO_BOOTSTRAP, discount=discount, lambda_=lambda_
  )


def token_gae():
  return returns.token_gae(
    REWARD, TOKEN_VALUE, IDS, LAST, NO_BOOTSTRAP, discount=0.9, lambda_=0.8
  )


def small(steps, **fields):
  """One step a row: column 0 is the prompt, then `steps[k]` action tokens."""
  rows, columns = len(steps), 1 + max(steps)
  index = np.arange(columns)
  ids = np.where(
    (index > 0) & (index <= np.array(steps)[:, None]),
    np.arange(1, rows + 1)[:, None],
    0,
  ).astype(np.int32)
  parent = np.tile(np.maximum(index - 1, 0), (rows, 1)).astype(np.int32)
  zeros = np.zeros(rows + 1, np.int32)
  tokens = batch.TokenBatch(
    tokens=ids,
    positions=ids,
    parent=parent,
    subtree_end=ids,
    step_ids=ids,
    behaviour_logp=np.zeros(ids.shape, np.float32),
  )
  table = batch.StepTable(
    live=np.arange(rows + 1) > 0,
    num_tokens=np.array([0, *steps], np.int32),
    truncated=zeros.astype(bool),
    boundary=np.array([0, *np.arange(rows) * columns], np.int32),
    bootstrap_at=zeros,
    **{
      name: np.array([fill, *fields.get(name, [fill] * rows)], dtype)
      for name, fill, dtype in (
        ("reward", 0, np.float32),
        ("last", True, bool),
        ("trajectory", 0, np.int32),
        ("group", 0, np.int32),
        ("anchor", 0, np.int32),
        ("success", False, bool),
      )
    },
  )
  return tokens, table


def records():
  """The golden batch as records, without the observation inside B0."""
  return small(
    [2, 3, 4, 2, 2, 1],
    reward=[0, 0, 1, 0.5, -0.5, 2],
    last=[0, 0, 1, 0, 1, 1],
    trajectory=[0, 0, 0, 1, 1, 2],
    group=[0, 0, 0, 0, 0, 1],
    anchor=[0, 1, 2, 0, 1, 3],
  )
