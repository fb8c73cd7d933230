"""Checkpoints of a run: arrays and a few host facts, written by Orbax."""

import json
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_log = logging.getLogger(__name__)

_ARRAYS = "arrays"
_HOST = "host"


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Returns {path: leaf}; Orbax gets this flat form, whatever the tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in leaves
  }


def _describe(named: dict[str, Any]) -> dict[str, str]:
  return {
    name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named.items()
  }


def _storable(named: dict[str, Any]) -> dict[str, Any]:
  """Returns the leaves as arrays that Orbax takes."""
  stored = {}
  for name, leaf in named.items():
    if isinstance(leaf, np.generic):  # Orbax refuses NumPy scalars.
      leaf = np.asarray(leaf)
    if not isinstance(leaf, jax.Array | np.ndarray):
      raise ValueError(
        f"{name} of the checkpoint is a {type(leaf).__name__}, not an array; "
        "save it under `host`"
      )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(
        f"{name} of the checkpoint is a typed PRNG key; save "
        "jax.random.key_data of it"
      )
    stored[name] = leaf
  return stored


def _target(leaf: Any) -> Any:
  """Returns what tells Orbax type, shape and place of one array."""
  if isinstance(leaf, np.ndarray | np.generic):
    return np.asarray(leaf)
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_same(path: pathlib.Path, saved: dict, wanted: dict) -> None:
  """Raises ValueError naming the arrays in which the two differ."""
  faults = [f"{name} is missing" for name in wanted if name not in saved]
  faults += [f"{name} is not known" for name in saved if name not in wanted]
  faults += [
    f"{name} is {saved[name]} and should be {wanted[name]}"
    for name in wanted
    if name in saved and saved[name] != wanted[name]
  ]
  if faults:
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise ValueError(
      f"the checkpoint {path} was written by a run of another configuration: "
      f"{'; '.join(faults[:5])}{more}; restore it with the configuration it "
      "was trained with or choose another run folder"
    )


class Checkpoints:
  """The checkpoints of one run, the newest few of them.

  Saving copies the arrays and returns; the files are written behind the next
  update. A folder gets its final name only when it is complete, so that a kill
  leaves no half checkpoint under the name of a whole one.
  """

  def __init__(self, directory: str | os.PathLike, keep: int):
    """Names the folder; nothing is read or made yet.

    Args:
      directory: holds one folder per checkpoint, named by its update.
      keep: number of checkpoints kept; older ones are removed.

    Raises:
      ValueError: `keep` is below 1.
    """
    if keep < 1:
      raise ValueError(f"keep must be at least 1, it is {keep}")
    self._directory = pathlib.Path(directory).absolute()
    self._keep = keep
    self._opened: ocp.CheckpointManager | None = None

  def _manager(self) -> ocp.CheckpointManager:
    if self._opened is None:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=self._keep, create=True
      )
      self._opened = ocp.CheckpointManager(self._directory, options=options)
    return self._opened

  def _updates(self) -> list[int]:
    """Returns the updates that have a checkpoint, oldest first."""
    if self._opened is None and not self._directory.is_dir():
      return []
    return sorted(self._manager().all_steps())

  def latest(self) -> int | None:
    """Returns the update of the newest checkpoint, None without any."""
    updates = self._updates()
    return updates[-1] if updates else None

  def save(self, update: int, arrays: Any, host: dict[str, Any]) -> None:
    """Saves the state after an update.

    Checkpoints of this and of later updates belong to a run that was given up
    for an earlier checkpoint; they are removed first.

    Args:
      update: number of updates done.
      arrays: pytree whose leaves are JAX or NumPy arrays.
      host: facts that JSON can hold.

    Raises:
      ValueError: a leaf is not an array, or `host` is not JSON.
      RuntimeError: the checkpoint could not be written.
    """
    stored = _storable(_named_leaves(arrays))
    try:
      text = json.dumps(host)
    except (TypeError, ValueError) as error:
      raise ValueError(f"host facts must be JSON: {error}") from error
    if json.loads(text) != host:
      raise ValueError("host facts must be JSON: string keys, lists, no tuples")
    manager = self._manager()
    for stale in [u for u in self._updates() if u >= update]:
      _log.warning(
        "removing checkpoint %d of %s: the run went back to an earlier one",
        *(stale, self._directory),
      )
      manager.delete(stale)
    try:
      done = manager.save(
        update,
        args=ocp.args.Composite(
          **{
            _ARRAYS: ocp.args.StandardSave(stored),
            _HOST: ocp.args.JsonSave(
              {"host": host, "arrays": _describe(stored)}
            ),
          }
        ),
        force=True,
      )
    except OSError as error:
      raise RuntimeError(
        f"cannot write checkpoint {update} in {self._directory}: {error}; free "
        "space there or choose another run folder"
      ) from error
    if not done:
      raise RuntimeError(
        f"checkpoint {update} was not written in {self._directory}; choose "
        "another run folder"
      )

  def restore(
    self, update: int | None, like: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint back, bit for bit.

    Args:
      update: which one; None for the newest that is intact.
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
    updates = self._updates()
    if not updates:
      raise RuntimeError(
        f"no checkpoint in {self._directory}; check the run folder, or start "
        "the run from its beginning"
      )
    if update is not None and update not in updates:
      raise RuntimeError(
        f"no checkpoint of update {update} in {self._directory}; there are "
        f"{', '.join(map(str, updates))}"
      )
    wanted = [update] if update is not None else updates[::-1]
    for position, candidate in enumerate(wanted):
      try:
        return self._read(candidate, like)
      except RuntimeError as error:
        if position == len(wanted) - 1:
          raise
        _log.warning("%s; trying the one before", error)
    raise AssertionError("not reached")

  def _read(self, update: int, like: Any) -> tuple[Any, dict[str, Any]]:
    path = self._directory / str(update)
    named = {name: _target(leaf) for name, leaf in _named_leaves(like).items()}
    manager = self._manager()
    try:
      args = ocp.args.Composite(**{_HOST: ocp.args.JsonRestore()})
      facts = manager.restore(update, args=args)[_HOST]
      host, saved = facts["host"], facts["arrays"]
    except Exception as error:  # Orbax raises whatever its parts raise.
      raise _broken(path, error) from error
    _check_same(path, saved, _describe(named))
    try:
      args = ocp.args.Composite(**{_ARRAYS: ocp.args.StandardRestore(named)})
      arrays = manager.restore(update, args=args)[_ARRAYS]
    except Exception as error:
      raise _broken(path, error) from error
    treedef = jax.tree.structure(like)
    return jax.tree.unflatten(treedef, [arrays[name] for name in named]), host

  def wait(self) -> None:
    """Returns when everything saved is on the disk.

    Raises:
      RuntimeError: a checkpoint could not be written.
    """
    if self._opened is not None:
      try:
        self._opened.wait_until_finished()
      except OSError as error:
        raise RuntimeError(
          f"cannot write a checkpoint in {self._directory}: {error}; free "
          "space there or choose another run folder"
        ) from error

  def close(self) -> None:
    """Waits for what is being written and lets go of the folder."""
    self.wait()
    if self._opened is not None:
      self._opened.close()
      self._opened = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _broken(path: pathlib.Path, error: Exception) -> RuntimeError:
  first = str(error).strip().split("\n")[0][:200]
  return RuntimeError(
    f"the checkpoint {path} is broken ({type(error).__name__}: {first}); "
    "restore an earlier update, or remove that folder and resume"
  )
