"""Checkpoints come back bit for bit, or say which folder is broken."""

import gc
import json
import logging
import pathlib
import shutil
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steppo_jax import checkpoint

# A failed read leaves coroutines of Orbax that were never awaited.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore:coroutine:RuntimeWarning",
)


class Moments(typing.NamedTuple):
  count: jax.Array
  mu: dict


def state(offset=0.0):
  return {
    "params": {
      "dense/kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4) / 3 + offset,
      "half": jnp.array([1.1, -2.3, 3e38], jnp.bfloat16),
    },
    "opt": (Moments(jnp.int32(7), {"a": jnp.full(5, jnp.nan)}), (), None),
    "key": jax.random.key_data(jax.random.key(3)),
    "count": np.int64(2**40),
    "host": np.arange(3, dtype=np.int64),
  }


def bits(tree):
  return [
    (type(x) is np.ndarray, x.dtype, x.shape, np.asarray(x).tobytes())
    for x in map(
      lambda x: np.asarray(x) if isinstance(x, np.generic) else x,
      jax.tree.leaves(tree),
    )
  ]


@pytest.fixture(autouse=True)
def collected():
  yield
  gc.collect()  # What Orbax left half read is reported here, not later.


@pytest.fixture
def folder(tmp_path):
  """Three checkpoints: updates 10, 20 and 30."""
  with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as saved:
    for update in (10, 20, 30):
      saved.save(update, state(update), {"update": update, "queue": [1, "é"]})
  return tmp_path / "checkpoints"


def test_every_type_comes_back_bit_for_bit(folder):
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    assert saved.latest() == 30
    arrays, host = saved.restore(None, state())
    assert host == {"update": 30, "queue": [1, "é"]}
    assert bits(arrays) == bits(state(30))
    assert isinstance(arrays["opt"][0], Moments)
    assert bits(saved.restore(10, state())[0]) == bits(state(10))


def test_abstract_arrays_are_enough_to_restore(folder):
  like = jax.tree.map(
    lambda x: (
      jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x
    ),
    state(),
  )
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    assert bits(saved.restore(20, like)[0]) == bits(state(20))


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


def test_only_the_newest_are_kept(folder):
  with checkpoint.Checkpoints(folder, keep=2) as saved:
    saved.save(40, state(40), {})
    saved.wait()
  names = {path.name for path in folder.iterdir() if path.is_dir()}
  assert names == {"30", "40"}


def test_going_back_removes_the_future_that_was_given_up(folder, caplog):
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    saved.restore(10, state())
    with caplog.at_level(logging.WARNING, "steppo_jax.checkpoint"):
      saved.save(20, state(-20), {})
    assert "removing checkpoint 30" in caplog.text
    saved.wait()
    assert saved.latest() == 20
    assert bits(saved.restore(None, state())[0]) == bits(state(-20))


def files_of(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(data)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link(path):
  kept = path.with_name("elsewhere")
  path.rename(kept)
  path.symlink_to(kept.name)


@pytest.mark.parametrize("damage", [flip, cut, pathlib.Path.unlink, link])
def test_whatever_is_damaged_the_one_before_is_used(
  folder, tmp_path, caplog, damage
):
  paths = files_of(folder / "30")
  assert any(path.name == "manifest.json" for path in paths)
  for path in paths:
    if damage in (flip, cut) and not path.stat().st_size:
      continue
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = {p: p.read_bytes() for p in files_of(copy / "20")}
    damage(copy / path.relative_to(folder))
    left = len(files_of(copy))
    caplog.clear()
    with (
      checkpoint.Checkpoints(copy, keep=3) as saved,
      caplog.at_level(logging.WARNING, "steppo_jax.checkpoint"),
    ):
      arrays, host = saved.restore(None, state())
      assert host["update"] == 20
      assert bits(arrays) == bits(state(20))
      assert saved.latest() == 20
    finished = damage is not pathlib.Path.unlink or path.name != "manifest.json"
    name = "30.corrupt" if finished else "30.unfinished"
    assert f"it is now {copy / name}" in caplog.text
    assert (copy / name).is_dir()
    # Nothing is deleted.
    assert len(files_of(copy)) == left
    assert before == {p: p.read_bytes() for p in files_of(copy / "20")}
    shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["extra", "arrays/extra"])
def test_a_file_too_many_is_damage_too(folder, name):
  (folder / "30" / name).write_text("x")
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    assert saved.restore(None, state())[1]["update"] == 20


def test_arrays_that_changed_before_they_were_written_are_noticed(
  folder, caplog
):
  # Files and their digests agree; the numbers are not those of the run.
  path = folder / "30" / "manifest.json"
  found = json.loads(path.read_text())
  shard = found["shards"]["params.half"][0]
  shard["digest"] = shard["digest"][::-1]
  path.write_text(json.dumps(found))
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    assert saved.restore(None, state())[1]["update"] == 20
  assert "params.half has other numbers" in caplog.text


def test_a_kill_before_the_manifest_leaves_the_one_before(folder):
  (folder / "30" / "manifest.json").rename(folder / "30" / "manifest.json.tmp")
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    assert saved.latest() == 20
    assert saved.restore(None, state())[1]["update"] == 20
  assert (folder / "30.unfinished").is_dir()


def test_a_run_killed_in_its_first_save_starts_over(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=3) as saved:
    saved.save(1, state(), {})
  (tmp_path / "1" / "manifest.json").unlink()
  with checkpoint.Checkpoints(tmp_path, keep=3) as saved:
    assert saved.latest() is None
    saved.save(1, state(1.0), {})
    assert bits(saved.restore(None, state())[0]) == bits(state(1.0))


def test_the_best_is_kept_beside_the_newest(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    for update, score in ((1, 0.2), (2, 0.7), (3, 0.4), (4, None), (5, 0.1)):
      saved.save(update, state(update), {}, score=score)
    saved.wait()
    assert {p.name for p in tmp_path.iterdir()} == {"2", "4", "5"}
    assert bits(saved.restore(2, state())[0]) == bits(state(2))


def test_a_full_disk_is_named_and_loses_nothing(tmp_path):
  # A disk of its own, too small for the second checkpoint.
  code = """
import pathlib, sys, resource
import jax.numpy as jnp
from steppo_jax import checkpoint
with checkpoint.Checkpoints(sys.argv[1], keep=3) as saved:
  saved.save(1, {"x": jnp.ones(9)}, {"update": 1})
  saved.wait()
  # No file may get larger: EFBIG, as a full disk gives ENOSPC.
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
  try:
    saved.save(2, {"x": jnp.arange(4_000_000.0)}, {"update": 2})
    saved.wait()
  except RuntimeError as error:
    sys.exit(str(error))
"""
  run = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    check=False,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1, run.stderr
  assert "cannot write a checkpoint in" in run.stderr
  with checkpoint.Checkpoints(tmp_path, keep=3) as saved:
    assert saved.latest() == 1
    assert saved.restore(None, {"x": jnp.zeros(9)})[1] == {"update": 1}


def test_a_folder_that_is_a_link_or_cannot_be_made_is_named(folder, tmp_path):
  (tmp_path / "link").symlink_to(folder)
  saved = checkpoint.Checkpoints(tmp_path / "link", keep=1)
  with pytest.raises(RuntimeError, match="is a link"):
    saved.latest()
  (tmp_path / "file").write_text("")
  saved = checkpoint.Checkpoints(tmp_path / "file" / "in", keep=1)
  with pytest.raises(RuntimeError, match="cannot write a checkpoint"):
    saved.save(1, state(), {})


def test_a_broken_newest_falls_back_and_says_so(folder, caplog):
  for path in (folder / "30").rglob("metadata"):
    path.write_bytes(path.read_bytes()[:10])
  shutil.rmtree(folder / "20" / "arrays")
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    with caplog.at_level(logging.WARNING, "steppo_jax.checkpoint"):
      arrays, host = saved.restore(None, state())
    assert host["update"] == 10
    assert bits(arrays) == bits(state(10))
    assert f"{folder / '30'} is broken" in caplog.text
    assert f"{folder / '20'} is broken" in caplog.text
    # The run goes on from 10 and makes 20 again.
    saved.save(20, state(20), {"update": 20})
    saved.wait()
    assert saved.latest() == 20
    assert saved.restore(None, state())[1] == {"update": 20}


def test_nothing_intact_is_an_error(folder):
  for path in folder.rglob("metadata"):
    path.unlink()
  with checkpoint.Checkpoints(folder, keep=3) as saved:
    message = r"is intact; start the run in"
    with pytest.raises(RuntimeError, match=message):
      saved.restore(None, state())
    with pytest.raises(RuntimeError, match=message):
      saved.latest()
  # Starting over here would bury what is left of them.
  assert {p.name for p in folder.iterdir()} == {
    *("10.corrupt", "20.corrupt", "30.corrupt")
  }


def test_a_missing_checkpoint_is_named(folder, tmp_path):
  with (
    checkpoint.Checkpoints(folder, keep=3) as saved,
    pytest.raises(RuntimeError, match=r"update 15 in .* 10, 20, 30"),
  ):
    saved.restore(15, state())
  absent = checkpoint.Checkpoints(tmp_path / "absent", keep=1)
  assert absent.latest() is None
  with pytest.raises(RuntimeError, match=r"no checkpoint in .*absent"):
    absent.restore(None, state())
  assert not (tmp_path / "absent").exists()


def test_another_configuration_is_named(folder):
  like = state()
  like["params"]["dense/kernel"] = jnp.zeros((3, 5))
  like["params"]["half"] = jnp.zeros(3)
  like["new"] = jnp.zeros(1)
  del like["host"]
  with (
    checkpoint.Checkpoints(folder, keep=3) as saved,
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
from steppo_jax import checkpoint
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
