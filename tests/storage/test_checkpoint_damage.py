"""Whatever is damaged, the checkpoint before is used, and nothing is lost."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import saved_states
from marks import some
from saved_states import bits, state

from steppo_jax.storage import checkpoint

pytestmark = saved_states.ORBAX


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


@pytest.mark.parametrize(
  "damage", some(flip, slow=[cut, pathlib.Path.unlink, link])
)
def test_whatever_is_damaged_the_one_before_is_used(
  checkpoint_folder, tmp_path, caplog, damage
):
  paths = files_of(checkpoint_folder / "30")
  assert any(path.name == "manifest.json" for path in paths)
  for path in paths:
    if damage in (flip, cut) and not path.stat().st_size:
      continue
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint_folder, copy)
    before = {p: p.read_bytes() for p in files_of(copy / "20")}
    damage(copy / path.relative_to(checkpoint_folder))
    left = len(files_of(copy))
    caplog.clear()
    with (
      checkpoint.Checkpoints(copy, keep=3) as saved,
      caplog.at_level(logging.WARNING, "steppo_jax.storage.checkpoint"),
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
def test_a_file_too_many_is_damage_too(checkpoint_folder, name):
  (checkpoint_folder / "30" / name).write_text("x")
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    assert saved.restore(None, state())[1]["update"] == 20


def test_arrays_that_changed_before_they_were_written_are_noticed(
  checkpoint_folder, caplog
):
  # Files and their digests agree; the numbers are not those of the run.
  path = checkpoint_folder / "30" / "manifest.json"
  found = json.loads(path.read_text())
  shard = found["shards"]["params.half"][0]
  shard["digest"] = shard["digest"][::-1]
  path.write_text(json.dumps(found))
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    assert saved.restore(None, state())[1]["update"] == 20
  assert "params.half has other numbers" in caplog.text


def test_a_kill_before_the_manifest_leaves_the_one_before(checkpoint_folder):
  (checkpoint_folder / "30" / "manifest.json").rename(
    checkpoint_folder / "30" / "manifest.json.tmp"
  )
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    assert saved.latest() == 20
    assert saved.restore(None, state())[1]["update"] == 20
  assert (checkpoint_folder / "30.unfinished").is_dir()


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
from steppo_jax.storage import checkpoint
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


# Every write and fsync below $SLOW_BELOW takes a tenth of a second.
_SLOW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
static void wait_at(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  const char *below = getenv("SLOW_BELOW");
  if (n > 0 && below && !strncmp(path, below, strlen(below))) usleep(100000);
}
#define REAL(name) __typeof__(&name) real = dlsym(RTLD_NEXT, #name)
ssize_t write(int fd, const void *data, size_t size) {
  REAL(write); wait_at(fd); return real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev); wait_at(fd); return real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite); wait_at(fd); return real(fd, data, size, at);
}
int fsync(int fd) { REAL(fsync); wait_at(fd); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); wait_at(fd); return real(fd); }
"""

_SLOW_RUN = """
import sys, time
import jax.numpy as jnp
from steppo_jax.storage import checkpoint
with checkpoint.Checkpoints(sys.argv[1], keep=3) as saved:
  for update in (1, 2):
    began = time.monotonic()
    saved.save(update, {"x": jnp.full(9, update, jnp.float32)}, {})
    if update == 2 and sys.argv[2:]:
      print("writing", flush=True)
    saved.wait()
    print(time.monotonic() - began, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_slow_disk_is_waited_for_and_a_kill_meanwhile_loses_nothing(
  tmp_path,
):
  (tmp_path / "slow.c").write_text(_SLOW)
  subprocess.run(
    ["cc", "-shared", "-fPIC", "-o", "slow.so", "slow.c", "-ldl"],
    cwd=tmp_path, check=True,
  )  # fmt: skip
  env = os.environ | {
    "LD_PRELOAD": str(tmp_path / "slow.so"), "SLOW_BELOW": str(tmp_path)
  }  # fmt: skip
  start = lambda name, *more: subprocess.Popen(
    [sys.executable, "-c", _SLOW_RUN, str(tmp_path / name), *more],
    env=env, text=True, stdout=subprocess.PIPE,
  )  # fmt: skip
  like = {"x": jnp.zeros(9, jnp.float32)}
  whole = start("whole")
  times = [float(line) for line in whole.communicate(timeout=120)[0].split()]
  assert whole.returncode == 0
  # It is as slow as it was made.
  assert len(times) == 2
  assert min(times) > 1
  killed = start("killed", "and tell")
  for line in killed.stdout:
    if line.startswith("writing"):
      killed.kill()
  killed.wait(60)
  for name, newest in (("whole", 2), ("killed", 1)):
    with checkpoint.Checkpoints(tmp_path / name, keep=3) as saved:
      assert saved.latest() == newest
      np.testing.assert_array_equal(saved.restore(None, like)[0]["x"], newest)


def test_a_folder_that_is_a_link_or_cannot_be_made_is_named(
  checkpoint_folder, tmp_path
):
  (tmp_path / "link").symlink_to(checkpoint_folder)
  saved = checkpoint.Checkpoints(tmp_path / "link", keep=1)
  with pytest.raises(RuntimeError, match="is a link"):
    saved.latest()
  (tmp_path / "file").write_text("")
  saved = checkpoint.Checkpoints(tmp_path / "file" / "in", keep=1)
  with pytest.raises(RuntimeError, match="cannot write a checkpoint"):
    saved.save(1, state(), {})


def test_a_broken_newest_falls_back_and_says_so(checkpoint_folder, caplog):
  for path in (checkpoint_folder / "30").rglob("metadata"):
    path.write_bytes(path.read_bytes()[:10])
  shutil.rmtree(checkpoint_folder / "20" / "arrays")
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    with caplog.at_level(logging.WARNING, "steppo_jax.storage.checkpoint"):
      arrays, host = saved.restore(None, state())
    assert host["update"] == 10
    assert bits(arrays) == bits(state(10))
    assert f"{checkpoint_folder / '30'} is broken" in caplog.text
    assert f"{checkpoint_folder / '20'} is broken" in caplog.text
    # The run goes on from 10 and makes 20 again.
    saved.save(20, state(20), {"update": 20})
    saved.wait()
    assert saved.latest() == 20
    assert saved.restore(None, state())[1] == {"update": 20}


def test_nothing_intact_is_an_error(checkpoint_folder):
  for path in checkpoint_folder.rglob("metadata"):
    path.unlink()
  with checkpoint.Checkpoints(checkpoint_folder, keep=3) as saved:
    message = r"is intact; start the run in"
    with pytest.raises(RuntimeError, match=message):
      saved.restore(None, state())
    with pytest.raises(RuntimeError, match=message):
      saved.latest()
  # Starting over here would bury what is left of them.
  assert {p.name for p in checkpoint_folder.iterdir()} == {
    *("10.corrupt", "20.corrupt", "30.corrupt")
  }
