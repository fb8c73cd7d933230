"""What clients of sessions send, checked."""

import hashlib
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from steppo_jax import types
from steppo_jax.serving import schema

_LARGEST = types.LARGEST_REWARD
Name = Annotated[str, Field(min_length=1, max_length=128)]
Label = Annotated[str, Field(max_length=256)]
Labels = Annotated[dict[Name, Label], Field(max_length=32)]
Notes = Annotated[str, Field(max_length=1 << 14)]
Order = Annotated[int, Field(ge=0, lt=1 << 31)]
Reward = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Form(pydantic.BaseModel):
  # A field that is spelt wrong would be a reward that is lost.
  model_config = pydantic.ConfigDict(extra="forbid", strict=False)


class Task(_Form):
  """What is to be done; see `types.Task`."""

  uid: Annotated[str, Field(min_length=1, max_length=256)]
  env: Name = "agent"
  family: Name = "agent"
  payload: schema.Object = {}
  golden_steps: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None

  def record(self) -> types.Task:
    """The host's record of it."""
    return types.Task(**self.model_dump())


class Create(_Form):
  """`POST /sessions`.

  Without a task it is one that waits in the pool, of any channel unless one is
  named; sessions with a task are for training unless one is. Sessions of one
  task whose `group_size` is above 1 are compared with each other.
  """

  task: Task | None = None
  group: Annotated[str, Field(min_length=1, max_length=256)] | None = None
  group_size: Annotated[int, Field(ge=1, le=1024)] = 1
  channel: Literal["train", "validation"] | None = None
  key: (
    Annotated[list[schema.Word], Field(min_length=1, max_length=5)] | None
  ) = None
  labels: Labels = {}
  notes: Notes = ""
  request_id: Name | None = None

  @property
  def named(self) -> tuple[str, str] | None:
    """Its name and digest, None without a name."""
    return self.request_id and (self.request_id, digest(self).hex())

  def wanted(self) -> types.Task | None:
    """The task that is asked for, None for any."""
    if self.task is not None:
      return self.task.record()
    return self.group and Task(uid=self.group).record()


class Rewarded(_Form):
  """`POST /sessions/ID/rewards`: what one step was worth.

  A reward has a name, and sending it once more replaces it: the step's is the
  sum over names.
  """

  reward: Reward
  step: Order | None = None
  name: Name = "reward"
  invalid: bool | None = None
  anchor: Annotated[str, Field(max_length=1 << 16)] | None = None
  order: Order | None = None


class Labelled(_Form):
  """`POST /sessions/ID/labels`."""

  labels: Labels = {}
  notes: Notes | None = None
  order: Order | None = None


class Finish(_Form):
  """`POST /sessions/ID/finish`.

  "ended" is "terminated", unless the last call was refused at a limit, and
  "truncated" then.
  """

  status: Literal["terminated", "truncated", "ended", "error"]
  reward: Reward | None = None
  success: bool | None = None
  scores: Annotated[dict[Name, Number], Field(max_length=64)] = {}
  cause: Annotated[str, Field(pattern=r"^[A-Za-z][\w.-]{0,63}$")] = "AgentError"
  message: Annotated[str, Field(max_length=4096)] = ""
  messages: Annotated[list[schema.Message], Field(min_length=1)] | None = None
  tools: list[schema.Tool] | None = None
  labels: Labels = {}
  notes: Notes | None = None
  order: Order | None = None


def digest(form: pydantic.BaseModel) -> bytes:
  """Tells what clients sent apart, by its kind and everything in it."""
  text = f"{type(form).__name__} {form.model_dump_json()}"
  return hashlib.blake2b(
    text.encode("utf-8", "surrogatepass"), digest_size=16
  ).digest()
