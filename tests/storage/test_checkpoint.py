"""Checkpoints come back bit for bit, or say which folder is broken."""

import logging
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saved_states
from saved_states import bits, state

from steppo_jax.storage import checkpoint

pytestmark = saved_states.ORBAX


def test_every_type_comes_back_bit_for_bit(checkpoint_folder):
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    assert saved.latest() == 30
    arrays, host = saved.restore(None, state())
    assert host == {"update": 30, "queue": [1, "é"]}
    assert bits(arrays) == bits(state(30))
    assert isinstance(arrays["opt"][0], saved_states.Moments)
    assert bits(saved.restore(10, state())[0]) == bits(state(10))


def test_abstract_arrays_are_enough_to_restore(checkpoint_folder):
  like = jax.tree.map(
    lambda x: (
      jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x
    ),
    state(),
  )
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    assert bits(saved.restore(20, like)[0]) == bits(state(20))


def test_what_was_saved_in_float32_goes_on_so(tmp_path):
  wide = {"frozen": jnp.arange(3) / 7, "count": jnp.arange(2)}
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    saved.save(1, wide, {})
    narrow = wide | {"frozen": wide["frozen"].astype(jnp.bfloat16)}
    found, _ = saved.restore(1, narrow)
    assert bits(found) == bits(wide)
    # The other way round something would be lost of what is trained.
    saved.save(2, narrow, {})
    with pytest.raises(ValueError, match=r"frozen is bfloat16"):
      saved.restore(2, wide)


def test_sharded_arrays_come_back_as_asked_for(tmp_path):
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec
  rows = jax.sharding.NamedSharding(mesh, spec("data"))
  columns = jax.sharding.NamedSharding(mesh, spec(None, "data"))
  x = jax.random.normal(jax.random.key(0), (16, 8))
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    saved.save(1, {"x": jax.device_put(x, rows)}, {})
    for sharding in (rows, columns):
      like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
      y = saved.restore(1, like)[0]["x"]
      assert y.sharding == sharding
      assert bits(y) == bits(x)


def test_eight_four_and_two_devices_restore_the_same_bits(tmp_path):
  x = jax.random.normal(jax.random.key(0), (16, 8))
  spec = jax.sharding.PartitionSpec

  def on(count):
    mesh = jax.make_mesh(
      (count,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:count],
    )  # fmt: skip
    return jax.sharding.NamedSharding(mesh, spec("fsdp"))

  held = {"x": jax.device_put(x, on(8))}
  for update, count in enumerate((4, 2, 8)):
    # Each topology reads what the one before has written.
    with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
      saved.save(update, held, {})
      like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on(count))}
      held = saved.restore(None, like)[0]
    assert len(held["x"].sharding.device_set) == count
    assert bits(held) == bits({"x": x})


def test_saving_copies_what_the_next_update_overwrites(tmp_path):
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.zeros((2000, 500))
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    saved.save(1, {"x": x}, {})
    for _ in range(20):
      x = step(x)
    jax.block_until_ready(x)
    saved.wait()
    assert not np.any(saved.restore(1, {"x": x})[0]["x"])


def test_only_the_newest_are_kept(checkpoint_folder):
  with checkpoint.Checkpoints(checkpoint_folder, keep=2) as saved:
    saved.save(40, state(40), {})
    saved.wait()
  names = {path.name for path in checkpoint_folder.iterdir() if path.is_dir()}
  assert names == {"30", "40"}


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
  scores = {1: float("nan"), 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: 0.1}
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    for update, score in scores.items():
      saved.save(update, {"x": jnp.ones(1)}, {}, score=score)
    saved.wait()
  # The newest stays beside the best, whatever its score: the run goes on there.
  assert {path.name for path in tmp_path.iterdir()} == {"2", "6"}
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    assert saved.latest() == 6


@pytest.mark.parametrize(
  "arrays",
  [
    {"a": jnp.zeros((0, 3), jnp.bfloat16), "b": jnp.ones(2)},
    {"a": np.zeros((2, 0)), "b": [jnp.zeros(0, jnp.int32)]},
    {"a": {}, "b": None},
    {},
  ],
  ids=["one", "all", "nothing", "empty"],
)
def test_what_has_no_element_comes_back_too(tmp_path, arrays):
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    saved.save(1, arrays, {"a": 1})
    found, host = saved.restore(None, arrays)
    assert host == {"a": 1}
    assert jax.tree.structure(found) == jax.tree.structure(arrays)
    assert bits(found) == bits(arrays)
    with pytest.raises(ValueError, match="another configuration"):
      saved.restore(None, {"c": jnp.zeros((0, 4))})


def test_going_back_removes_the_future_that_was_given_up(
  checkpoint_folder, caplog
):
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    saved.restore(10, state())
    with caplog.at_level(logging.WARNING, "steppo_jax.storage.checkpoint"):
      saved.save(20, state(-20), {})
    assert "removing checkpoint 30" in caplog.text
    saved.wait()
    assert saved.latest() == 20
    assert bits(saved.restore(None, state())[0]) == bits(state(-20))


def test_a_missing_checkpoint_is_named(checkpoint_folder, tmp_path):
  with (
    checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved,
    pytest.raises(RuntimeError, match=r"update 15 in .* 10, 20, 30"),
  ):
    saved.restore(15, state())
  absent = checkpoint.Checkpoints(tmp_path / "absent", keep=1)
  assert absent.latest() is None
  with pytest.raises(RuntimeError, match=r"no checkpoint in .*absent"):
    absent.restore(None, state())
  assert not (tmp_path / "absent").exists()


def test_another_configuration_is_named(checkpoint_folder):
  like = state()
  like["params"]["dense/kernel"] = jnp.zeros((3, 5))
  like["params"]["half"] = jnp.zeros(3)
  like["new"] = jnp.zeros(1)
  del like["host"]
  with (
    checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved,
    pytest.raises(ValueError) as raised,
  ):
    saved.restore(None, like)
  text = str(raised.value)
  assert "dense/kernel is float32[3, 4] and should be float32[3, 5]" in text
  assert "half is bfloat16[3] and should be float32[3]" in text
  assert "new is missing" in text
  assert "host is not known" in text


def test_what_cannot_be_saved_is_named(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  with pytest.raises(ValueError, match=r"a\.b of the checkpoint is a int"):
    saved.save(1, {"a": {"b": 3}}, {})
  with pytest.raises(ValueError, match="typed PRNG key"):
    saved.save(1, {"key": jax.random.key(0)}, {})
  for leaf in (jnp.ones(2, jnp.uint4), np.array(["a"]), np.array([None])):
    with pytest.raises(ValueError, match=r"x of the checkpoint is of type"):
      saved.save(1, {"x": leaf}, {})
  with pytest.raises(ValueError, match="must be JSON"):
    saved.save(1, {"x": jnp.ones(1)}, {"a": jnp.ones(1)})
  with pytest.raises(ValueError, match="no tuples"):
    saved.save(1, {"x": jnp.ones(1)}, {1: "a"})
  with pytest.raises(ValueError, match="keep must be at least 1"):
    checkpoint.Checkpoints(tmp_path, keep=0)


def test_a_kill_in_the_middle_of_saving_leaves_the_one_before(tmp_path):
  # The process dies as soon as the folder of the second checkpoint appears.
  code = """
import os, pathlib, signal, sys, threading
import jax.numpy as jnp
from steppo_jax.storage import checkpoint
folder = pathlib.Path(sys.argv[1])
saved = checkpoint.Checkpoints(folder, keep=3)
saved.save(1, {"x": jnp.ones(9)}, {"update": 1})
saved.wait()
def watch():
  while len([p for p in folder.iterdir() if p.is_dir()]) < 2:
    pass
  os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
saved.save(2, {"x": jnp.ones((4000, 4000))}, {"update": 2})
saved.wait()
"""
  run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
  assert run.returncode == -9
  left = {path.name for path in pathlib.Path(tmp_path).iterdir()}
  assert "1" in left
  assert len(left) == 2
  with checkpoint.Checkpoints(tmp_path, keep=3) as saved:
    assert saved.latest() == 1
    arrays, host = saved.restore(None, {"x": jnp.zeros(9)})
  assert host == {"update": 1}
  assert np.all(arrays["x"] == 1)
