"""Files of credit: what an update computed for each step and token.

`RUN/credit/000012.npz` holds the numbers of update 12, for people and programs
that look at episodes. It is written by a run with `record_credit`, or later by
`python -m steppo_jax credit RUN --update 12`. This module imports no JAX.
"""

import dataclasses
import io
import os
import pathlib
from typing import Any

import numpy as np

from steppo_jax import files

FOLDER_NAME = "credit"
_VERSION = 1
# Names of the arrays, by what they have a number for.
OF_STEPS = ("reward", "value", "delta", "advantage", "target", "ratio")
OF_TOKENS = (
  "logp", "behaviour_logp", "ratio_t", "entropy", "advantage_t", "clipped",
  "teacher_gap",
)  # fmt: skip
_OFFSETS = ("first_step", "first_token")
_FACTS = ("update", "checkpoint_update", "algorithm", "episodes")


@dataclasses.dataclass(frozen=True)
class Credit:
  """The numbers of the E episodes that one update was trained on.

  They have S steps, and those N response tokens. The steps of episode e are
  `first_step[e] : first_step[e + 1]`, and the response tokens of step k are
  `first_token[k] : first_token[k + 1]`, as many as its `response_ids`. Numbers
  are NaN where the algorithm has none, such as values without a critic, and at
  tokens that the policy did not sample. What they mean is said in
  `learner.explain.Explained`.

  Attributes:
    update: Number of updates done before this one; the first update is 0, as in
      the names of journals and episodes.
    checkpoint_update: Updates behind the weights that computed this: `update`,
      or that of the nearest checkpoint that was kept.
    algorithm: Name of the row of the table.
    episodes: [E] uids of the trajectories.
    first_step: [E + 1] int.
    first_token: [S + 1] int.
    reward: [S] float32, in reward units like the next four.
    value: [S] V before the step.
    delta: [S] TD error.
    advantage: [S] as the loss used it, whitened where the algorithm does so.
    target: [S] what the critic was to learn.
    ratio: [S] of the step.
    logp: [N] log-probability under the weights at the start of the update.
    behaviour_logp: [N] log-probability under the weights that sampled.
    ratio_t: [N] of the token alone.
    entropy: [N] in nats.
    advantage_t: [N] what the token was given.
    clipped: [N] 1 where the surrogate was clipped, 0 where not, or a share.
    teacher_gap: [N] log-probability under a teacher minus that of the policy.

  Raises:
    ValueError: arrays do not fit each other.
  """

  update: int
  checkpoint_update: int
  algorithm: str
  episodes: tuple[str, ...]
  first_step: np.ndarray
  first_token: np.ndarray
  reward: np.ndarray
  value: np.ndarray
  delta: np.ndarray
  advantage: np.ndarray
  target: np.ndarray
  ratio: np.ndarray
  logp: np.ndarray
  behaviour_logp: np.ndarray
  ratio_t: np.ndarray
  entropy: np.ndarray
  advantage_t: np.ndarray
  clipped: np.ndarray
  teacher_gap: np.ndarray

  def __post_init__(self):
    for name in ("update", "checkpoint_update"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
    if len(set(self.episodes)) != len(self.episodes):
      raise ValueError("an episode is in the credit twice")
    steps = _check_offsets("first_step", self.first_step, len(self.episodes))
    tokens = _check_offsets("first_token", self.first_token, steps)
    for names, count in ((OF_STEPS, steps), (OF_TOKENS, tokens)):
      for name in names:
        array = getattr(self, name)
        if array.shape != (count,) or array.dtype != np.float32:
          raise ValueError(
            f"{name} is {array.dtype}{array.shape}, the offsets say "
            f"float32({count},)"
          )

  def steps_of(self, uid: str) -> slice:
    """Where the steps of an episode are.

    Raises:
      ValueError: the update did not train on it.
    """
    if uid not in self.episodes:
      raise ValueError(
        f"update {self.update} did not train on episode {uid}: an episode that "
        "failed or was dropped has no credit"
      )
    at = self.episodes.index(uid)
    return slice(int(self.first_step[at]), int(self.first_step[at + 1]))


def _check_offsets(name: str, array: np.ndarray, count: int) -> int:
  """Offsets of `count` things; returns how much they have together."""
  if array.dtype.kind not in "iu" or array.shape != (count + 1,):
    raise ValueError(
      f"{name} is {array.dtype}{array.shape}, it must be int({count + 1},)"
    )
  if array[0] != 0 or (np.diff(array.astype(np.int64)) < 0).any():
    raise ValueError(f"{name} must begin at 0 and never fall")
  return int(array[-1])


def path_of(run: str | os.PathLike, update: int) -> pathlib.Path:
  """Where the credit of an update lies in the folder of a run."""
  return pathlib.Path(run) / FOLDER_NAME / f"{update:06d}.npz"


def updates_of(run: str | os.PathLike) -> list[int]:
  """The updates whose credit is there, in order."""
  names = (p.stem for p in (pathlib.Path(run) / FOLDER_NAME).glob("*.npz"))
  return sorted(int(name) for name in names if name.isdecimal())


def write(path: str | os.PathLike, credit: Credit) -> None:
  """Writes a file whole, or leaves the one that is there; makes the folder.

  Raises:
    RuntimeError: it cannot be written.
  """
  path = pathlib.Path(path)
  arrays: dict[str, Any] = {
    "version": np.int64(_VERSION),
    "update": np.int64(credit.update),
    "checkpoint_update": np.int64(credit.checkpoint_update),
    "algorithm": np.str_(credit.algorithm),
    "episodes": np.array(credit.episodes, dtype=np.str_),
  }
  names = (*_OFFSETS, *OF_STEPS, *OF_TOKENS)
  arrays |= {name: getattr(credit, name) for name in names}
  packed = io.BytesIO()
  np.savez(packed, **arrays)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The run and the command may both write it.
    with files.replacing(path, ending=f".{os.getpid()}.tmp") as new:
      new.write_bytes(packed.getbuffer())
  except OSError as error:
    raise RuntimeError(
      f"cannot write {path}: {error.strerror}; free space there, or leave "
      "record_credit out"
    ) from error


def read(path: str | os.PathLike) -> Credit:
  """What a file holds.

  Raises:
    ValueError: there is no such file, it is damaged, or it is something else.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f"no credit at {path}: compute it with `python -m steppo_jax credit RUN "
      "--update U`"
    )
  try:
    return _contents(path)
  except Exception as error:  # Damaged archives raise what they will.
    told = error.args[0] if error.args else type(error).__name__
    raise ValueError(
      f"{path} is damaged, or no file of credit ({told}): remove it and "
      "compute it again"
    ) from error


def _contents(path: pathlib.Path) -> Credit:
  # By its bytes: NumPy leaves a damaged file open.
  loaded = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
  if isinstance(loaded, np.ndarray):
    raise ValueError("it is one array")
  with loaded as found:
    known = {"version", *_FACTS, *_OFFSETS, *OF_STEPS, *OF_TOKENS}
    missing = sorted(known - set(found.files))
    if missing:
      raise ValueError(f"it lacks {', '.join(missing)}")
    if int(found["version"]) != _VERSION:
      raise ValueError(f"its version is not {_VERSION}")
    arrays = {name: found[name] for name in known}
  if arrays["episodes"].dtype.kind != "U" or arrays["episodes"].ndim != 1:
    raise ValueError("its episodes have no names")
  names = (*_OFFSETS, *OF_STEPS, *OF_TOKENS)
  return Credit(
    update=int(arrays["update"]),
    checkpoint_update=int(arrays["checkpoint_update"]),
    algorithm=str(arrays["algorithm"]),
    episodes=tuple(arrays["episodes"].tolist()),
    **{name: arrays[name] for name in names},
  )
