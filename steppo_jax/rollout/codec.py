"""Trajectories as bytes: frames that a journal holds, or processes exchange.

A frame is

    length     4 bytes, little endian: bytes of the payload
    digest     16 bytes: BLAKE2b of the payload
    payload    what `processes.frames.pack` makes of JSON and arrays

This module imports no JAX.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from steppo_jax import types
from steppo_jax.processes import frames as processes_frames

_LENGTH = struct.Struct("<I")
_DIGEST = 16

# Fields of a step that are written as they are.
_PLAIN = (
  "reward",
  "policy_version",
  "terminated",
  "truncated",
  "stop_reason",
  "anchor_obs",
)


def to_bytes(trajectories: Sequence[types.Trajectory]) -> bytes:
  """Frames, one a trajectory."""
  return b"".join(
    frame(processes_frames.pack(head, data))
    for head, data in map(encode, trajectories)
  )


def from_bytes(data: bytes) -> list[types.Trajectory]:
  """What `to_bytes` was given; tasks are what JSON makes of them.

  Raises:
    ValueError: bytes are missing or damaged.
  """
  found, end = [], 0
  for payload, place in frames(data):
    found.append(decode(*processes_frames.unpack(payload)))
    end = place
  if end != len(data):
    raise ValueError(f"{len(data) - end} bytes are no whole frame")
  return found


def frame(payload: bytes) -> bytes:
  """A payload with its length and digest."""
  digest = hashlib.blake2b(payload, digest_size=_DIGEST).digest()
  return _LENGTH.pack(len(payload)) + digest + payload


def frames(data: bytes) -> Iterator[tuple[bytes, int]]:
  """Payloads that are whole, each with the place where its frame ends."""
  place = 0
  while place + _LENGTH.size + _DIGEST <= len(data):
    (length,) = _LENGTH.unpack_from(data, place)
    start = place + _LENGTH.size + _DIGEST
    payload = data[start : start + length]
    if frame(payload) != data[place : start + length]:
      return
    place = start + length
    yield payload, place


def read_frame(file: BinaryIO, place: int) -> tuple[bytes, int] | None:
  """The payload of the frame at a place of a file, and where the frame ends.

  Args:
    file: Open for reading, in binary mode.
    place: Where a frame begins, in bytes.

  Returns:
    None where no whole frame begins: the file ends, perhaps within a frame that
    is still being written, or is damaged.
  """
  file.seek(place)
  start = file.read(_LENGTH.size + _DIGEST)
  if len(start) < _LENGTH.size + _DIGEST:
    return None
  payload = file.read(*_LENGTH.unpack_from(start))
  if frame(payload)[: len(start)] != start:
    return None
  return payload, place + len(start) + len(payload)


def encode(trajectory: types.Trajectory) -> tuple[dict[str, Any], bytes]:
  """The line and the arrays of a trajectory's payload."""
  # A prompt mostly goes on where the step before ended; only what is new is
  # written, or the length of a file would be quadratic in the steps.
  before, steps, arrays = np.zeros(0, np.int32), [], []
  for step in trajectory.steps:
    shared = types.common_prefix(step.prompt_ids, before)
    new = len(step.prompt_ids) - shared
    lengths = [shared, new, len(step.response_ids)]
    plain = {name: getattr(step, name) for name in _PLAIN}
    thoughts = step.reasoning_mask
    told = {"reasoning": None if thoughts is None else len(thoughts)}
    steps.append(plain | told | {"n": lengths, "metadata": dict(step.metadata)})
    arrays += [
      np.asarray(step.prompt_ids[shared:], "<i4"),
      np.asarray(step.response_ids, "<i4"),
      np.asarray(step.behaviour_logp, "<f4"),
      np.asarray(step.response_mask, bool),
      *([] if thoughts is None else [np.asarray(thoughts, bool)]),
    ]
    before = np.concatenate([step.prompt_ids, step.response_ids])
  final, lengths = trajectory.final_prompt_ids, None
  if final is not None:
    shared = types.common_prefix(final, before)
    lengths = [shared, len(final) - shared]
    arrays.append(np.asarray(final[shared:], "<i4"))
  head = {
    "uid": trajectory.uid,
    "task": types.task_to_json(trajectory.task),
    "success": trajectory.success,
    "error": trajectory.error,
    "retried": list(trajectory.retried),
    "scores": dict(trajectory.scores),
    "final": lengths,
    "steps": steps,
  }
  return head, b"".join(array.tobytes() for array in arrays)


def _thoughts(line, take) -> np.ndarray | None:
  """The mask of thoughts; None in files of older versions."""
  count = line.get("reasoning")
  return None if count is None else take(count, "?", np.bool_)


def decode(head: Mapping[str, Any], data: bytes) -> types.Trajectory:
  """The trajectory of a payload."""
  place = 0

  def take(count, stored, dtype):
    nonlocal place
    found = np.frombuffer(data, stored, count, place).astype(dtype)
    place += found.size * np.dtype(stored).itemsize
    return found

  task = types.task_from_json(head["task"])
  before, steps = np.zeros(0, np.int32), []
  for index, line in enumerate(head["steps"]):
    shared, new, length = line["n"]
    prompt = np.concatenate([before[:shared], take(new, "<i4", np.int32)])
    response = take(length, "<i4", np.int32)
    steps.append(
      types.Step(
        prompt_ids=prompt,
        response_ids=response,
        behaviour_logp=take(length, "<f4", np.float32),
        response_mask=take(length, "?", np.bool_),
        reasoning_mask=_thoughts(line, take),
        trajectory_uid=head["uid"],
        step_index=index,
        group_uid=task.uid,
        metadata=line["metadata"],
        **{name: line[name] for name in _PLAIN},
      )
    )
    before = np.concatenate([prompt, response])
  final = None
  if head["final"] is not None:
    shared, new = head["final"]
    final = np.concatenate([before[:shared], take(new, "<i4", np.int32)])
  return types.Trajectory(
    head["uid"],
    task,
    tuple(steps),
    final,
    head["success"],
    head["error"],
    tuple(head["retried"]),
    head["scores"],
  )
