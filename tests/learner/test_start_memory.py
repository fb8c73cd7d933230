"""To make a learner's state takes little more than the state."""

import functools

import jax
import jax.numpy as jnp
import learner_runs
import live_arrays
import numpy as np
import pytest
from marks import some

from steppo_jax.learner import learner, memory, spec
from steppo_jax.learner import options as learner_options
from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import transformer
from steppo_jax.models.options import LoraConfig

MODEL = transformer.ModelConfig(
  vocab_size=512, width=64, num_layers=2, num_heads=2, num_kv_heads=1,
  head_dim=16, mlp_width=256,
)  # fmt: skip
POLICY = memory.whole(transformer.abstract_params(MODEL))
# What goes at once: the matrices of one kind of all layers.
LEAF = 2 * 64 * 256 * 4
MESHES = {
  "rows": dict(data=8, fsdp=1, tensor=1),
  "parameters": dict(data=1, fsdp=8, tensor=1),
}


def devices_of(name):
  return mesh_lib.make_model_mesh(**MESHES[name])


def learner_on(mesh, rank=0, trunk="own"):
  config = learner_options.LearnerConfig(
    microbatch_rows=8, critic_trunk=trunk, lora=LoraConfig(rank=rank)
  )
  return learner.Learner(
    MODEL, learner_runs.row("steppo"), config, mesh, num_updates=4, seed=0
  )


def policy_at(mesh, kind="float32"):
  """A policy as it is read: in parts where devices split it, else on one."""
  params = transformer.init(MODEL, jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(kind), params)
  if mesh.shape["fsdp"] == 1:
    return params
  return mesh_lib.put(params, mesh_lib.placements(mesh, params))


def watch(monkeypatch, live):
  """Bytes of the first device whenever arrays were made of others."""
  most = []

  def watched(function):
    @functools.wraps(function)
    def call(*args, **options):
      found = function(*args, **options)
      most.append(live.now())
      return found

    return call

  for owner, name in ((jax, "device_put"), (jnp, "array"), (jnp, "copy")):
    monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
  return most


def bytes_of(tree):
  """What the first device holds of it, each array by itself."""
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ("name", "kind", "donate"),
  some(
    ("parameters", "float32", True),
    slow=[
      (name, kind, donate)
      for name in MESHES
      for kind in ("float32", "bfloat16")
      for donate in (False, True)
    ],
  ),
)
def test_devices_hold_the_state_and_one_array_more(
  name, kind, donate, monkeypatch
):
  mesh = devices_of(name)
  # In bfloat16 it is not trained, and the critic has no array of it.
  made = learner_on(mesh, rank=2 if kind == "bfloat16" else 0)
  live = live_arrays.Live()
  policy = policy_at(mesh, kind)
  given = live.bytes()
  most = watch(monkeypatch, live)
  state = made.init(policy, donate=donate)
  # Nothing in it is one array for two, or an update could not take them.
  want = bytes_of(state) + (0 if donate else given)
  assert live.bytes() == want
  assert 0 < max(most) <= want + LEAF
  assert bool(policy) != donate
  # Gone with the state only if it was given up.
  jax.tree.map(lambda x: x.delete(), state)
  assert not any(x.is_deleted() for x in jax.tree.leaves(policy))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(policy))


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_a_policy_that_is_given_up_gives_the_same_state(name):
  mesh = devices_of(name)
  made = learner_on(mesh)
  want = made.init(policy_at(mesh))
  host = jax.device_get(policy_at(mesh))
  before = jax.tree.map(np.copy, host)
  for policy in (policy_at(mesh), host):
    given = jax.tree.leaves(policy)
    found = made.init(policy, donate=True)
    assert policy == {}
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
      assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
      np.testing.assert_array_equal(x, y)
    # An update writes over the state, and nobody may see that in NumPy's.
    jax.tree.map(lambda x: x.delete(), found)
  for x, y in zip(given, jax.tree.leaves(before), strict=True):
    np.testing.assert_array_equal(x, y)


def test_a_critic_that_is_missing_takes_nothing_away():
  model = spec.Model(lambda *_: None, values=lambda *_: None)
  config = learner_options.LearnerConfig(microbatch_rows=8)
  made = learner.Learner(
    model, learner_runs.row("steppo"), config, mesh_lib.make_mesh(1),
    num_updates=4, seed=0,
  )  # fmt: skip
  policy = {"table": jnp.zeros(2)}
  with pytest.raises(ValueError, match="has parameters of its own"):
    made.init(policy, donate=True)
  assert set(policy) == {"table"}
