"""Weights go from the learner's devices to the sampler's, not by the host."""

import dataclasses

import aligned
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from marks import some

from steppo_jax.models import lora, mesh, transformer
from steppo_jax.models.options import LoraConfig
from steppo_jax.sampler import hand_over, split

MESHES = {
  "one device": lambda: mesh.make_mesh(1),
  "data 8": lambda: mesh.make_mesh(8),
  "data 2 x fsdp 2 x tensor 2": lambda: mesh.make_model_mesh(
    data=2, fsdp=2, tensor=2
  ),
}


def policy(where, *, adapters=False):
  """A policy on a mesh, and the same on the host."""
  made = jax.device_get(worlds.policy())
  if adapters:
    made = lora.add(made, LoraConfig(rank=2), jax.random.key(0))
    # Adapters that change something.
    made = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.01), made)
  return mesh.put(made, mesh.placements(where, made)), made


def was_on_host(tree) -> bool:
  """Whether NumPy has seen an array that is split over devices."""
  return any(x._npy_value is not None for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("adapters", [False, True])
def test_the_sampler_gets_what_the_learner_has(name, adapters):
  ours, host = policy(MESHES[name](), adapters=adapters)
  found = hand_over.for_sampler(worlds.model(), ours)
  want = transformer.by_layer(lora.merge(host))
  assert jax.tree.structure(found) == jax.tree.structure(want)
  same = np.testing.assert_array_equal
  if adapters:
    same = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6)
  jax.tree.map(same, found, jax.device_get(want))
  (first,) = {d for x in jax.tree.leaves(found) for d in x.devices()}
  assert first == jax.local_devices()[0]
  # The next update takes the learner's arrays.
  jax.tree.map(lambda x: x.delete(), ours)
  jax.tree.map(same, found, jax.device_get(want))


@pytest.mark.parametrize("name", MESHES)
def test_a_sampler_may_have_devices_of_its_own(name):
  ours, host = policy(MESHES[name]())
  last = jax.local_devices()[-1]
  alone = mesh.make_mesh(devices=[last])
  found = hand_over.for_sampler(worlds.model(), ours, alone)
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(found),
    jax.device_get(transformer.by_layer(host)),
  )  # fmt: skip
  assert {d for x in jax.tree.leaves(found) for d in x.devices()} == {last}
  assert not was_on_host(ours)


@pytest.mark.parametrize(
  ("data", "tensor"), some((2, 4), slow=[(4, 2), (1, 4)])
)
@pytest.mark.parametrize("name", [*MESHES, "the host"])
def test_devices_that_share_a_model_get_a_part_each_and_the_host_nothing(
  name, data, tensor
):
  model, count = worlds.model(), data * tensor
  # Not in the learner's order, nor on all of its devices.
  devices = np.array(jax.devices()[::-1][:count]).reshape(data, tensor)
  sampler = jax.sharding.Mesh(devices, ("data", "tensor"))
  host = jax.tree.map(aligned.copy, jax.device_get(worlds.policy()))
  want = jax.device_get(
    split.fit(model, transformer.by_layer(worlds.policy()), tensor)
  )
  ours = host
  if name in MESHES:
    ours = mesh.put(host, mesh.placements(MESHES[name](), host))
  found = hand_over.for_sampler(model, ours, sampler)
  if name in MESHES:
    assert not was_on_host(ours)
    jax.tree.map(lambda x: x.delete(), ours)
  else:
    aligned.spoil(host)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), want)
  specs = split.specs(model, tensor)
  jax.tree.map(
    lambda x, spec: (
      x.sharding.is_equivalent_to(
        jax.sharding.NamedSharding(sampler, spec), x.ndim
      )
      or pytest.fail(f"{x.sharding} is not {spec}")
    ),
    found,
    specs,
  )


def test_a_policy_is_told_by_its_first_numbers_and_stays_on_its_devices():
  where = MESHES["data 2 x fsdp 2 x tensor 2"]()
  ours, host = policy(where, adapters=True)
  found = hand_over.marked(ours)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.reshape(-1)[:4096]),
    found,
    host,
  )
  hand_over.for_sampler(worlds.model(), ours)
  assert not was_on_host(ours)
  jax.device_get(ours)
  assert was_on_host(ours)


def test_matrices_are_converted_once_and_norms_never():
  model = dataclasses.replace(worlds.model(), compute="bfloat16")
  found = hand_over.for_sampler(model, worlds.policy())
  layer = found["layers"][0]
  assert layer["q"][transformer.TURNED].dtype == jnp.bfloat16
  assert layer["attention_norm"]["scale"].dtype == jnp.float32
  # On CPU logits are float32 products.
  assert found["embed"]["embedding"].dtype == jnp.float32


def test_weights_of_the_host_may_be_written_over_at_once():
  host = jax.tree.map(aligned.copy, jax.device_get(worlds.policy()))
  found = hand_over.for_sampler(worlds.model(), host)
  aligned.spoil(host)
  want = transformer.by_layer(jax.device_get(worlds.policy()))
  jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(want))
