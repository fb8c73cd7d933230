"""However the learner is split over eight devices, it does what one does."""

import dataclasses

import jax
import jax.numpy as jnp
import learner_runs
import numpy as np
import pytest
import worlds

from steppo_jax import trees
from steppo_jax.learner import learner
from steppo_jax.learner import state as learner_state
from steppo_jax.models import mesh, options

MESHES = {
  "fsdp 8": dict(data=1, fsdp=8, tensor=1),
  "fsdp 4 x tensor 2": dict(data=1, fsdp=4, tensor=2),
  "data 2 x fsdp 4": dict(data=2, fsdp=4, tensor=1),
}
# Where 8 host devices share two busy cores, XLA's CPU runtime now and then runs
# collectives of a loop and others beside it at one time on some device; others
# take them in another order, and all wait for ever (seen 4 times in about 12
# runs, jax 0.10.2). A suite that must end leaves these to `make test-slow`.
split = pytest.mark.slow


def updated(devices, config=learner_runs.CONFIG, *, policy=None):
  """State and metrics after two updates, and the learner."""
  made = learner.Learner(
    worlds.model(), learner_runs.row("steppo"), config, devices,
    num_updates=4, seed=0,
  )  # fmt: skip
  state = made.init(worlds.policy() if policy is None else policy)
  batch = learner_state.put_batch(learner_runs.packed(), devices)
  for _ in range(2):
    state, found = made.update(state, None, batch)
  return state, jax.device_get(found), made


@pytest.mark.parametrize("adapters", [False, True])
def test_a_state_is_made_where_the_policy_is(adapters):
  # A device that cannot hold the policy holds none of what is made of it.
  devices = mesh.make_model_mesh(**MESHES["data 2 x fsdp 4"])
  config = dataclasses.replace(
    learner_runs.CONFIG, lora=options.LoraConfig(rank=2 * adapters)
  )
  spec = learner.make_spec(
    worlds.model(), learner_runs.row("steppo"), config, devices,
    num_updates=4, seed=0,
  )  # fmt: skip
  policy = worlds.policy()
  placed = mesh.put(policy, mesh.placements(devices, policy))
  made = learner.init(spec, placed)
  paths = trees.flatten(jax.device_get(policy)["layers"])
  count = 0
  for path, x in jax.tree_util.tree_leaves_with_path(made):
    names = "/".join(str(getattr(k, "key", "")) for k in path)
    if names.endswith("kernel") and any(p in names for p in paths):
      assert x.addressable_shards[0].data.size * 4 == x.size, names
      count += 1
  # Policy and critic with two moments each; the policy's not under adapters.
  assert count == (4 if adapters else 6) * 7
  moved = mesh.put(placed, mesh.placements(devices, placed))
  jax.tree.map(lambda x, y: x is y or pytest.fail("was moved"), placed, moved)


@split
@pytest.mark.parametrize("shape", MESHES)
def test_a_split_model_gives_the_loss_and_update_of_one_device(shape, sgd):
  want, expected, _ = updated(mesh.make_mesh(1))
  devices = mesh.make_model_mesh(**MESHES[shape])
  state, found, made = updated(devices)
  learner_runs.close(jax.device_get(state), jax.device_get(want))
  for name in ("policy/policy_loss", "critic/value_error_squared"):
    total, weight = found[name]
    loss = expected[name][0] / expected[name][1]
    np.testing.assert_allclose(total / weight, loss, rtol=1e-5, atol=1e-5)
  gate = state.policy["layers"]["gate"]["kernel"]
  parts = MESHES[shape]["fsdp"] * MESHES[shape]["tensor"]
  assert gate.addressable_shards[0].data.size * parts == gate.size
  # A state that came back elsewhere would be compiled for once more.
  assert made.compiles == 1


@split
@pytest.mark.parametrize("rank", [0, 4])
def test_adams_moments_and_adapters_lie_beside_their_matrices(rank):
  config = dataclasses.replace(
    learner_runs.CONFIG, lora=options.LoraConfig(rank=rank)
  )
  devices = mesh.make_model_mesh(**MESHES["fsdp 4 x tensor 2"])
  state, found, _ = updated(devices, config)
  moments = state.policy_optimizer[1][0].mu
  if rank:  # adapters are trained as a flat tree
    leaf = "layers/q/lora_a"
    moment = moments[leaf]
  else:
    leaf = "layers/q/kernel"
    moment = trees.flatten(moments)[leaf]
  trained = trees.flatten(state.policy)[leaf]
  assert moment.sharding.is_equivalent_to(trained.sharding, trained.ndim)
  assert not trained.sharding.is_fully_replicated
  assert np.isfinite(found["policy/grad_norm"][0])


@split
def test_the_kernel_splits_rows_and_heads_as_the_mesh_does(sgd):
  kernel = dataclasses.replace(learner_runs.CONFIG, attention="pallas")
  want, _, _ = updated(mesh.make_mesh(1))
  devices = mesh.make_model_mesh(**MESHES["fsdp 4 x tensor 2"])
  state, _, _ = updated(devices, kernel)
  learner_runs.close(jax.device_get(state), jax.device_get(want))


@split
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_changes_nothing(remat, sgd, monkeypatch):
  devices = mesh.make_model_mesh(**MESHES["fsdp 8"])
  want, _, _ = updated(devices)
  model = dataclasses.replace(worlds.model(), remat=remat)
  monkeypatch.setattr(worlds, "model", lambda: model)
  state, _, _ = updated(devices)
  learner_runs.close(jax.device_get(state), jax.device_get(want))


@split
def test_bfloat16_computes_the_split_update_near_that_of_float32(
  sgd, monkeypatch
):
  devices = mesh.make_model_mesh(**MESHES["fsdp 8"])
  want, _, _ = updated(devices)
  model = dataclasses.replace(worlds.model(), compute="bfloat16")
  monkeypatch.setattr(worlds, "model", lambda: model)
  state, _, _ = updated(devices)
  assert state.policy["embed"]["embedding"].dtype == jnp.float32
  # 8 bits of mantissa: steps of 0.05 g, g about 1, are right to some percent.
  learner_runs.close(jax.device_get(state), jax.device_get(want), 2e-2)


def test_options_of_the_mesh_leave_the_rest_to_rows():
  made = mesh.of_run(options.MeshConfig(fsdp=2, tensor=2), None)
  assert dict(made.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert mesh.row_parts(made) == 4
  assert mesh.of_run(options.MeshConfig(), 3).axis_names == ("data",)
  assert mesh.of_run(options.MeshConfig(fsdp=2), 4).size == 4
  with pytest.raises(
    ValueError, match=r"fsdp=3 x mesh\.tensor=1 do not divide"
  ):
    mesh.of_run(options.MeshConfig(fsdp=3), None)
  with pytest.raises(ValueError, match=r"mesh\.fsdp=0 must be above 0"):
    options.MeshConfig(fsdp=0)


def test_the_last_devices_are_left_to_rollouts():
  alone = options.MeshConfig(rollout_devices=2)
  assert mesh.rollout_devices(alone) == jax.devices()[6:]
  assert list(mesh.of_run(alone, None).devices.flat) == jax.devices()[:6]
  split = dataclasses.replace(alone, fsdp=3)
  assert dict(mesh.of_run(split, None).shape) == {
    "data": 2, "fsdp": 3, "tensor": 1
  }  # fmt: skip
  assert mesh.rollout_devices(options.MeshConfig()) == jax.devices()
  with pytest.raises(ValueError, match="num_devices=7, but there are 6"):
    mesh.of_run(alone, 7)
  with pytest.raises(ValueError, match="leaves the learner none of the 8"):
    mesh.of_run(options.MeshConfig(rollout_devices=8), None)
  with pytest.raises(ValueError, match="rollout_devices=-1 must be at least"):
    options.MeshConfig(rollout_devices=-1)
