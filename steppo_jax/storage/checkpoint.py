"""Checkpoints of a run: arrays and a few host facts, written by Orbax."""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import shutil
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from steppo_jax import trees
from steppo_jax.processes import hosts as hosts_lib
from steppo_jax.processes import kill_points
from steppo_jax.storage import manifest

_log = logging.getLogger(__name__)

_ARRAYS = "arrays"
_HOST = "host"
_CORRUPT, _UNFINISHED = ".corrupt", ".unfinished"


class Checkpoints:
  """The checkpoints of one run: the newest few of them, and the best.

  Saving copies the arrays and returns; the files are written behind the next
  update. A checkpoint counts when its manifest is there, which is written last:
  a kill at any time leaves no half checkpoint under the name of a whole one.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int,
    hosts: hosts_lib.Hosts = hosts_lib.ALONE,
  ):
    """Names the folder; nothing is read or made yet.

    Args:
      directory: holds one folder per checkpoint, named by its update.
      keep: number of checkpoints kept; older ones are removed, except the one
        with the best score.
      hosts: processes that save and restore together; all call everything.

    Raises:
      ValueError: `keep` is below 1.
    """
    if keep < 1:
      raise ValueError(f"keep must be at least 1, it is {keep}")
    self._directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._hosts = hosts
    self._orbax: ocp.AsyncCheckpointer | None = None
    self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
    self._sealing: futures.Future | None = None

  def _checkpointer(self) -> ocp.AsyncCheckpointer:
    if self._orbax is None:
      self._orbax = ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(
          **{
            _ARRAYS: ocp.StandardCheckpointHandler(),
            _HOST: ocp.JsonCheckpointHandler(),
          }
        )
      )
    return self._orbax

  def _updates(self) -> list[int]:
    """Returns the updates that have a folder, oldest first."""
    if self._directory.is_symlink():
      raise RuntimeError(
        f"{self._directory} is a link; give the folder itself as run_dir"
      )
    if not self._directory.is_dir():
      return []
    names = [p.name for p in self._directory.iterdir() if p.is_dir()]
    return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)

  def finished(self) -> list[int]:
    """Returns the updates whose checkpoints are finished, oldest first."""
    made = lambda u: (self._directory / str(u) / manifest.NAME).is_file()
    return [update for update in self._updates() if made(update)]

  def latest(self) -> int | None:
    """Returns the update of the newest finished checkpoint, None without any.

    Raises:
      RuntimeError: all that are left are damaged; starting over would bury
        them.
    """
    self.wait()
    # The files may change while the others look: the first one's word counts.
    return self._hosts.gather_json("the newest checkpoint", self._latest())[0]

  def _latest(self) -> int | None:
    updates = self._updates()
    for update in reversed(updates):
      try:
        manifest.read(self._directory / str(update))
      except manifest.Missing:
        continue
      except ValueError:
        return update  # `restore` tells what is wrong with it.
      return update
    damaged = list(self._directory.glob(f"*{_CORRUPT}"))
    if damaged or len(updates) > 1:
      raise self._nothing_left()
    return None

  def _nothing_left(self):
    return RuntimeError(
      f"no checkpoint in {self._directory} is intact; start the run in another "
      f"run_dir, or remove that folder to start it over here"
    )

  def save(
    self,
    update: int,
    arrays: Any,
    host: dict[str, Any],
    *,
    score: float | None = None,
  ) -> None:
    """Saves the state after an update.

    Checkpoints of this and of later updates belong to a run that was given up
    for an earlier checkpoint; they are removed first.

    Args:
      update: number of updates done.
      arrays: pytree whose leaves are JAX or NumPy arrays.
      host: facts that JSON can hold.
      score: how good the state is, if that was found out. The best is kept;
        NaN is never the best.

    Raises:
      ValueError: a leaf is not an array, or `host` is not JSON.
      RuntimeError: this checkpoint or the one before could not be written.
    """
    stored = trees.storable(trees.named_leaves(arrays))
    try:
      text = json.dumps(host)
    except (TypeError, ValueError) as error:
      raise ValueError(f"host facts must be JSON: {error}") from error
    if json.loads(text) != host:
      raise ValueError("host facts must be JSON: string keys, lists, no tuples")
    self.wait()
    shards = manifest.joined(
      self._hosts.gather_json(
        f"checkpoint {update}", manifest.digest_shards(trees.filled(stored))
      )
    )
    kill_points.passed("checkpoint: before")
    try:
      self._hosts.first(f"room {update}", lambda: self._make_room(update))
      kill_points.passed("checkpoint: room made")
      self._checkpointer().save(
        self._directory / str(update),
        args=ocp.args.Composite(
          **{
            _ARRAYS: ocp.args.StandardSave(trees.filled(stored)),
            _HOST: ocp.args.JsonSave(
              {"host": host, "arrays": trees.describe(stored)}
            ),
          }
        ),
      )
    except OSError as error:
      raise self._unwritten(error) from error
    kill_points.passed("checkpoint: handed to orbax")
    self._sealing = self._thread.submit(self._seal, update, shards, score)

  def _make_room(self, update: int) -> None:
    self._directory.mkdir(parents=True, exist_ok=True)
    for stale in [u for u in self._updates() if u >= update]:
      _log.warning(
        "removing checkpoint %d of %s: the run went back to an earlier one",
        *(stale, self._directory),
      )
      shutil.rmtree(self._directory / str(stale))
    # Of a process that was killed while it wrote.
    for left in self._directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(left)

  def _seal(self, update: int, shards, score) -> None:
    """Waits for the files, says what they are, removes old checkpoints."""
    self._checkpointer().wait_until_finished()
    kill_points.passed("checkpoint: files written")
    if not self._hosts.is_first:
      return
    folder = self._directory / str(update)
    manifest.write(folder, shards, {"update": update, "score": score})
    kill_points.passed("checkpoint: sealed")
    sealed = {}
    for other in self._updates():
      # A manifest that cannot be read is left for `restore` to judge.
      with contextlib.suppress(ValueError):
        facts = manifest.read(self._directory / str(other))["facts"]
        sealed[other] = facts.get("score")
    scored = [u for u, s in sealed.items() if s is not None and s == s]
    best = max(scored, key=lambda u: (sealed[u], u), default=None)
    for old in sorted(sealed)[: -self._keep]:
      if old != best:
        shutil.rmtree(self._directory / str(old))
        kill_points.passed("checkpoint: old one removed")

  def restore(
    self, update: int | None, like: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint back, bit for bit, and checks that it is.

    Args:
      update: which one; None for the newest that is intact. Damaged ones that
        are newer get the ending `.corrupt`, unfinished ones `.unfinished`;
        nothing is deleted.
      like: pytree of the same structure: arrays or `jax.ShapeDtypeStruct`; the
        arrays come back with its shapes, types and shardings, NumPy arrays as
        NumPy arrays.

    Returns:
      The arrays in the structure of `like`, and the host facts. The update is
      not among them unless it was saved there.

    Raises:
      ValueError: an array differs in name, shape or type from `like`.
      RuntimeError: there is no such checkpoint, or none that is intact.
    """
    self.wait()
    updates = self._hosts.gather_json("the checkpoints", self._updates())[0]
    if not updates:
      raise RuntimeError(
        f"no checkpoint in {self._directory}; check the run folder, or start "
        "the run from its beginning"
      )
    if update is None:
      return self._restore_newest(updates, like)
    if update not in updates:
      raise RuntimeError(
        f"no checkpoint of update {update} in {self._directory}; there are "
        f"{', '.join(map(str, updates))}"
      )
    try:
      return self._read(update, like)
    except manifest.Broken as error:
      raise RuntimeError(
        f"{error}; restore an earlier update, or remove that folder and resume"
      ) from error

  def _restore_newest(self, updates: list[int], like: Any):
    for update in reversed(updates):
      try:
        return self._read(update, like)
      except manifest.Broken as error:
        # Only the newest can have been interrupted before its manifest.
        open_end = error.unfinished and update == updates[-1]
        if self._hosts.is_first:
          path = self._set_aside(update, _UNFINISHED if open_end else _CORRUPT)
          _log.warning("%s; it is now %s; trying the one before", error, path)
        self._hosts.wait(f"checkpoint {update} set aside")
    raise self._nothing_left()

  def _set_aside(self, update: int, ending: str) -> pathlib.Path:
    old = self._directory / str(update)
    for number in itertools.count():
      new = old.with_name(f"{update}{f'.{number}' if number else ''}{ending}")
      if not os.path.lexists(new):
        os.rename(old, new)
        return new
    raise AssertionError("not reached")

  def _read(self, update: int, like: Any) -> tuple[Any, dict[str, Any]]:
    path = self._directory / str(update)
    named = {
      name: trees.target(leaf)
      for name, leaf in trees.named_leaves(like).items()
    }
    # Files are read as a whole once, and arrays by all, each its own part.
    fault = manifest.find(path) if self._hosts.is_first else None
    self._agree(f"the files of checkpoint {update}", fault)
    host, saved = self.facts(update)
    named = {name: _as_saved(x, saved.get(name)) for name, x in named.items()}
    trees.check_same(path, saved, trees.describe(named))
    try:
      wanted = ocp.args.StandardRestore(trees.filled(named))
      args = ocp.args.Composite(**{_ARRAYS: wanted})
      arrays = self._checkpointer().restore(path, args=args)[_ARRAYS]
      manifest.check_shards(manifest.read(path)["shards"], arrays)
    except Exception as error:
      fault = manifest.Broken(manifest.story(path, error))
    self._agree(f"the arrays of checkpoint {update}", fault)
    treedef = jax.tree.structure(like)
    leaves = [
      arrays[name] if name in arrays else trees.empty(leaf)
      for name, leaf in named.items()
    ]
    return jax.tree.unflatten(treedef, leaves), host

  def _agree(self, what: str, fault: manifest.Broken | None) -> None:
    """Raises in all processes what one has found."""
    mine = fault and [str(fault), fault.unfinished]
    for found in self._hosts.gather_json(what, mine):
      if found is not None:
        raise manifest.Broken(*found) from fault

  def facts(self, update: int) -> tuple[dict[str, Any], dict[str, str]]:
    """What a checkpoint holds, without its arrays.

    Returns:
      The host facts, and type and shape of each array by name.

    Raises:
      RuntimeError: there is no such checkpoint, or it is broken.
    """
    path = self._directory / str(update)
    try:
      args = ocp.args.Composite(**{_HOST: ocp.args.JsonRestore()})
      found = self._checkpointer().restore(path, args=args)[_HOST]
      return found["host"], found["arrays"]
    except Exception as error:  # Orbax raises whatever its parts raise.
      raise manifest.Broken(manifest.story(path, error)) from error

  def wait(self) -> None:
    """Returns when everything saved is on the disk, with its manifest.

    Raises:
      RuntimeError: a checkpoint could not be written.
    """
    sealing, self._sealing = self._sealing, None
    if sealing is None:
      return
    try:
      sealing.result()
    except Exception as error:  # Orbax raises whatever its parts raise.
      raise self._unwritten(error) from error

  def _unwritten(self, error: Exception) -> RuntimeError:
    return RuntimeError(
      f"cannot write a checkpoint in {self._directory}: "
      f"{manifest.first(error)}; free space there or choose another run "
      "folder. What was saved before is whole"
    )

  def close(self) -> None:
    """Waits for what is being written and lets go of the folder."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      if self._orbax is not None:
        self._orbax.close()
        self._orbax = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _as_saved(like: Any, saved: str | None) -> Any:
  """What an array is read as: of the type that it was saved in, if wider.

  Older runs kept parameters that are not trained in float32, whatever their
  weights were stored in. They go on so.
  """
  wider = jnp.dtype("float32")
  if not saved or not saved.startswith(f"{wider}["):
    return like
  if not jnp.issubdtype(like.dtype, jnp.floating):
    return like
  if like.dtype.itemsize >= wider.itemsize:
    return like
  if isinstance(like, np.ndarray):
    return like.astype(wider)
  return jax.ShapeDtypeStruct(like.shape, wider, sharding=like.sharding)
