"""Episodes of every kind, and records as data that can be compared."""

import dataclasses

import numpy as np
import worlds

from steppo_jax import types


def episodes():
  """Real episodes, and one of each kind that is rare."""
  found = list(worlds.trajectories())
  whole = found[0]
  strange = dataclasses.replace(
    whole.steps[0],
    trajectory_uid="broken",
    reward=0.1 + 0.2,
    anchor_obs='{"\u2028": "\x00"}',
    metadata={"invalid": True, "note": "é"},
  )
  found.append(
    types.Trajectory(
      "broken", whole.task, (strange,), None, False, "EnvDied: é\x00", ("A: b",)
    )
  )
  found.append(types.Trajectory("none", whole.task, (), None, False, ""))
  last = dataclasses.replace(
    whole.steps[0], trajectory_uid="won", terminated=True, truncated=False,
    response_ids=np.zeros(0, np.int32), response_mask=np.zeros(0, bool),
    behaviour_logp=np.zeros(0, np.float32), reasoning_mask=None,
  )  # fmt: skip
  found.append(
    types.Trajectory(
      "won", whole.task, (last,), None, True, scores={"f1": 2 / 3}
    )
  )
  return found


def plain(value):
  """Records as data that can be compared, with the types of arrays."""
  if isinstance(value, np.ndarray):
    return str(value.dtype), value.tolist()
  if dataclasses.is_dataclass(value):
    return {
      field.name: plain(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, tuple):
    return [plain(one) for one in value]
  return value
