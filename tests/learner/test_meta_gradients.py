"""Gradients through 20 updates, in float64, against finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_records import step, trajectory
from marks import some

import steppo_jax as sj
from steppo_jax.learner import state as learner_state

UPDATES, IDS = 20, 6
# Its place until jax 0.8.
HOME = jax if hasattr(jax, "enable_x64") else jax.experimental
x64 = lambda: HOME.enable_x64(True)
CONFIG = sj.LearnerConfig(
  num_minibatches=2, actor_epochs=2, critic_epochs=1, critic_warmup=0,
  warmup_steps=0, critic_warmup_steps=0, microbatch_rows=2,
)  # fmt: skip
# Constants of the learner, and of the environment: what rewards are worth.
COMMON = {"learning_rate": 0.004, "worth": 1.3}
CRITIC = {"discount": 0.9, "lambda_": 0.7, "critic_learning_rate": 0.01}
LOSS = {"kl_coef": 0.1, "entropy_coef": 0.05}
# Constants of each row that the parameters after an update depend on. They jump
# with the clip of a surrogate and stay in between: there both slopes are 0.
ROWS = {
  "steppo": CRITIC | LOSS | {"clip_high": 0.2, "value_clip": 0.4},
  "capo": CRITIC | LOSS | {"power": 0.6},
  "ppo": CRITIC | {"dual_clip": 3.0},
  "vetta": CRITIC | {"alpha": 0.7, "token_discount": 0.9, "token_lambda": 0.8},
  "cispo": {"clip_low": 0.25, "clip_high": 0.15, "eps": 0.1},
  "gmpo": {"clip_low": 0.1, "clip_high": 0.08},
  "soft": {"tau": (1.2, 1.7), "eps": 0.1},
  "gigpo": LOSS | {"discount": 0.9, "omega": 0.8, "eps": 0.1},
  "hgpo": {"discount": 0.9, "alpha": 1.2, "eps": 0.1},
  "dr_grpo": {"constant": 3.0, "kl_coef": 0.1},
  "rloo": {"kl_reward": 0.3},
  "serl": {"low": 0.7, "high": 1.3, "mix": 0.5, "eps": 0.1},
}


def log_probs(policy, rows):
  before = jnp.take_along_axis(rows.tokens, rows.parent, axis=1)
  logp = jax.nn.log_softmax(policy[0][before] + policy[1][None, None])
  entropy = -(jnp.exp(logp) * logp).sum(-1)
  return jnp.take_along_axis(logp, rows.tokens[..., None], 2)[..., 0], entropy


def values(critic, rows):
  return critic[0][rows.tokens]


def batch():
  """Eight episodes of two or three steps, as an older policy sampled them."""
  rng, made = np.random.default_rng(0), []
  for i in range(8):
    count, tokens, steps = 2 + i % 2, [0], []
    for k in range(count):
      prompt = [*tokens, int(rng.integers(1, IDS))]
      answer = [int(x) for x in rng.integers(1, IDS, 1 + (i + k) % 3)]
      made_step = step(
        prompt, answer, k, uid=str(i), reward=float(rng.normal()),
        end="terminated" if k == count - 1 else None,
      )  # fmt: skip
      steps.append(
        dataclasses.replace(
          made_step,
          anchor_obs=str(prompt[-1] % 2),
          group_uid=str(i // 4),
          behaviour_logp=rng.normal(-np.log(IDS), 0.2, len(answer)),
        )
      )
      tokens = prompt + answer
    made.append(trajectory(steps, uid=str(i)))
  packed = sj.packing.pack(
    made, np.arange(8) % 2, sj.packing.PackingConfig(row_length=16),
    num_parts=2, rows_multiple=2, pad_id=0,
  )  # fmt: skip
  return learner_state.Batch(packed.tokens, packed.table, packed.rows_used)


def trained(name, at):
  """One number of the parameters after the updates; `at` may be traced."""
  row, played = sj.ALGORITHMS[name], batch()
  own = {k: v for k, v in at.items() if k in dict(row.options)}
  fields = {f.name for f in dataclasses.fields(row)} - {"options"}
  row = dataclasses.replace(
    row,
    **{"kl_coef": 0.0}
    | ({} if name == "gmpo" else {"clip_low": 0.2, "clip_high": 0.2})
    | {k: v for k, v in at.items() if k in fields},
    options=tuple((dict(row.options) | own).items()),
    mix_updates=0,
  )
  rates = {k: v for k, v in at.items() if k.endswith("learning_rate")}
  wide = lambda x: jnp.asarray(x, jnp.float64)
  table = played.table.replace(reward=wide(played.table.reward) * at["worth"])
  played = played._replace(table=table)
  parts = sj.make_parts(
    sj.Model(log_probs, values), row, dataclasses.replace(CONFIG, **rates),
    num_updates=UPDATES, differentiable=True,
  )  # fmt: skip
  draw = lambda i, *shape: wide(np.random.default_rng(i).normal(size=shape))
  policy = (0.3 * draw(1, IDS, IDS), 0.1 * draw(2, IDS))
  critic = (0.2 * draw(3, IDS),) if row.critic else None
  reference = (0.4 * draw(4, IDS, IDS), 0.1 * draw(5, IDS))
  teacher = reference if "teacher" in row.needs else None

  def one(state, _):
    return sj.update(parts, state, reference, played, teacher)[0], None

  state = sj.init(parts, policy, critic)
  state, _ = jax.lax.scan(one, state, length=UPDATES)
  ends = jax.tree.leaves((state.policy, state.critic))
  assert all(x.dtype == jnp.float64 for x in ends)
  return sum(
    (x * draw(10 + i, *x.shape)).sum() for i, x in enumerate(ends)
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", some("steppo", slow=[*ROWS]))
def test_gradients_through_20_updates_are_finite_differences(name):
  at = COMMON | ROWS[name]
  with x64():
    at = jax.tree.map(np.float64, at)
    result = jax.jit(functools.partial(trained, name))
    slope = jax.device_get(
      jax.jit(jax.grad(functools.partial(trained, name)))(at)
    )
    leaves, tree = jax.tree.flatten(at)
    names = [str(path) for path, _ in jax.tree.leaves_with_path(at)]
    for i, (x, found) in enumerate(
      zip(leaves, jax.tree.leaves(slope), strict=True)
    ):
      put = lambda y, i=i: tree.unflatten([*leaves[:i], y, *leaves[i + 1 :]])
      near = (result(put(x + 1e-7)) - result(put(x - 1e-7))) / 2e-7
      np.testing.assert_allclose(
        found, near, rtol=1e-5, atol=1e-5, err_msg=f"{name}: {names[i]}"
      )
  told = {k for k, v in slope.items() if np.any(v)}
  assert {"learning_rate"} <= told
