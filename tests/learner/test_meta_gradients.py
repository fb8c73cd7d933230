"""Gradients through several updates, in float64, against finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_updates
from marks import some

import steppo_jax as sj
from steppo_jax.learner import spec as spec_lib
from steppo_jax.models import transformer

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
# Constants of each mode, and what it sets besides.
MODES = {
  "plain": ({}, {}),
  "tis_token": ({"rollout_high": 1.05}, {"rollout_correction": "tis_token"}),
  "tis_step": ({"rollout_high": 1.05}, {"rollout_correction": "tis_step"}),
  "icepop": ({}, {"rollout_correction": "icepop"}),
  "geometric": ({}, {"rollout_correction": "geometric"}),
  # Between 0.8 and 1.2 times the KL, where the weight is not held.
  "kl_target": ({"kl_coef": 0.5, "kl_target": 0.055}, {}),
  "focus": ({"focus_alpha": 0.3, "focus_beta": 0.5}, {}),
  "bounded": ({"advantage_clip": 0.6}, {"sequence_mask": 0.5}),
  "fresh": ({}, {"max_staleness": 5}),
}
# Of two updates, whose steps are longer than those of 20.
BRIEF = COMMON | {"learning_rate": 0.02}
DECODER = transformer.ModelConfig(
  vocab_size=toy_updates.IDS, width=4, num_layers=1, num_heads=1,
  num_kv_heads=1, head_dim=4, mlp_width=4, compute="float64",
)  # fmt: skip


def _row(name, at, changes):
  """The row with constants that may be traced."""
  row = sj.ALGORITHMS[name]
  own = {k: v for k, v in at.items() if k in dict(row.options)}
  fields = {f.name for f in dataclasses.fields(row)} - {"options"}
  return dataclasses.replace(
    row,
    **{"kl_coef": 0.0}
    | ({} if name == "gmpo" else {"clip_low": 0.2, "clip_high": 0.2})
    | changes
    | {k: v for k, v in at.items() if k in fields},
    options=tuple((dict(row.options) | own).items()),
    mix_updates=0,
  )


def _networks(model, row):
  """Policy, critic and reference of the table of logits or of a decoder."""
  draw = functools.partial(toy_updates.draw, dtype=jnp.float64)
  if isinstance(model, sj.Model):
    critic = (0.2 * draw(3, toy_updates.IDS),) if row.critic else None
    parameters = functools.partial(toy_updates.parameters, dtype=jnp.float64)
    return parameters(1), critic, parameters(4)
  shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  leaves, tree = jax.tree.flatten(shapes)
  make = lambda first: tree.unflatten(
    0.5 * draw(first + i, *x.shape) for i, x in enumerate(leaves)
  )
  return make(100), None, make(200)


def trained(name, at, *, updates, changes=(), model=None, **options):
  """One number of the parameters after the updates; `at` may be traced."""
  row = _row(name, at, dict(changes))
  rates = {k: v for k, v in at.items() if k.endswith("learning_rate")}
  played = toy_updates.batch(reasoning="focus_alpha" in at)
  reward = jnp.asarray(played.table.reward, jnp.float64) * at["worth"]
  played = played._replace(table=played.table.replace(reward=reward))
  model = model or sj.Model(
    toy_updates.log_probs, toy_updates.values,
    toy_updates.log_probs_and_energies,
  )  # fmt: skip
  parts = sj.make_parts(
    model, row, dataclasses.replace(toy_updates.CONFIG, **rates, **options),
    num_updates=20, differentiable=True,
  )  # fmt: skip
  policy, critic, reference = _networks(model, row)
  teacher = reference if "teacher" in row.needs else None

  def one(state, _):
    return sj.update(parts, state, reference, played, teacher)[0], None

  state = sj.init(parts, policy, critic)
  if state.critic is not None and critic is None:
    # Opinions for the heads, which begin at 0.
    state = state.replace(critic=jax.tree.map(lambda x: x + 0.3, state.critic))
  state, _ = jax.lax.scan(one, state, length=updates)
  ends = jax.tree.leaves((state.policy, state.critic))
  assert all(x.dtype == jnp.float64 for x in ends)
  draw = functools.partial(toy_updates.draw, dtype=jnp.float64)
  return sum((x * draw(10 + i, *x.shape)).sum() for i, x in enumerate(ends))


def check(name, at, **options):
  """Compares each slope with a central difference; returns the slopes."""
  with toy_updates.x64():
    at = jax.tree.map(np.float64, at)
    both = jax.jit(
      jax.value_and_grad(functools.partial(trained, name, **options))
    )
    _, slope = jax.device_get(both(at))
    leaves, tree = jax.tree.flatten(at)
    names = [str(path) for path, _ in jax.tree.leaves_with_path(at)]
    for i, (x, found) in enumerate(
      zip(leaves, jax.tree.leaves(slope), strict=True)
    ):
      put = lambda y, i=i: tree.unflatten([*leaves[:i], y, *leaves[i + 1 :]])
      near = (both(put(x + 1e-7))[0] - both(put(x - 1e-7))[0]) / 2e-7
      np.testing.assert_allclose(
        found, near, rtol=1e-5, atol=1e-5, err_msg=f"{name}: {names[i]}"
      )
  return slope


@pytest.mark.slow
@pytest.mark.parametrize("name", some("steppo", slow=[*ROWS]))
def test_gradients_through_20_updates_are_finite_differences(name):
  slope = check(name, COMMON | ROWS[name], updates=20)
  assert slope["learning_rate"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["grpo", "gspo", "ppo"])
def test_gradients_through_two_updates_know_every_mode(name, mode):
  at, changes = MODES[mode]
  brief = {} if name == "ppo" else {"actor_epochs": 1}
  slope = check(
    name, BRIEF | at, updates=2, changes=tuple(changes.items()), **brief
  )
  assert all(np.all(slope[key] != 0) for key in at), slope


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["steppo", "ppo", "vetta"])
def test_a_critic_on_the_policys_trunk_knows_how_the_trunk_moved(
  name, kept, monkeypatch
):
  # Whether hidden states are kept or computed again is a matter of memory.
  monkeypatch.setattr(spec_lib.UpdateSpec, "keeps", lambda *_: kept)
  at = BRIEF | {"discount": 0.9, "lambda_": 0.7, "critic_learning_rate": 0.05}
  slope = check(name, at, updates=2, model=DECODER, critic_trunk="policy")
  assert slope["learning_rate"] != 0
