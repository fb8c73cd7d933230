"""What clients send, checked; every fault names the field and what it may be.

Fields that are not known are passed over, as the services do whose forms these
are. What is known and not supported is refused, rather than ignored.

Sources: the packages openai 3.57.0, anthropic 2.14.0, verifiers 0.4.0 and trl
1.16.0, as clients, and what vLLM's server answers them.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

# Prompt tokens, and stop texts, that one request may have.
_MOST_IDS, _MOST_STOPS = 1 << 20, 16
# Lists and objects in each other: what reads a value calls itself for each.
_DEEPEST = 100


def is_deep(value: Any) -> bool:
  """Whether a value of JSON is nested deeper than anything here reads."""
  level = [value]
  for _ in range(_DEEPEST + 1):
    level = [inner for one in level for inner in _inside(one)]
    if not level:
      return False
  return True


def _inside(value: Any) -> Iterable[Any]:
  if isinstance(value, dict):
    return value.values()
  return value if isinstance(value, list | tuple) else ()


def _shallow(value: Any) -> Any:
  if is_deep(value):
    raise ValueError(f"nested more than {_DEEPEST} times")
  return value


Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[Id], Field(max_length=_MOST_IDS)]
Stop = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[Stop], Field(max_length=_MOST_STOPS)]
Word = Annotated[int, Field(ge=0, lt=1 << 32)]
TopP = Annotated[float, Field(gt=0, le=1)]
# Values whose form is the client's own.
Json = Annotated[Any, pydantic.AfterValidator(_shallow)]
Object = Annotated[dict[str, Any], pydantic.AfterValidator(_shallow)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class _Form(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="ignore", strict=False)


class TextFormat(_Form):
  """The one form of answers that there is."""

  type: Literal["text"]


class _Sampling(_Form):
  """What the two forms of OpenAI share."""

  model: str
  temperature: Annotated[float, Field(ge=0, le=1e4)] | None = None
  seed: Seed | None = None
  stop: Stop | Stops | None = None
  stream: bool | None = None
  stream_options: Object | None = None
  return_token_ids: bool | None = None
  top_p: TopP | None = None
  # Known, and refused unless they change nothing.
  n: Literal[1] | None = None
  frequency_penalty: Literal[0] | None = None
  presence_penalty: Literal[0] | None = None
  logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
  top_k: Literal[-1, 0] | None = None
  min_p: Literal[0] | None = None
  repetition_penalty: Literal[1] | None = None
  response_format: TextFormat | None = None
  stop_token_ids: Annotated[Ids, Field(max_length=0)] | None = None

  @property
  def stops(self) -> tuple[str, ...]:
    """The texts that end the answer."""
    if self.stop is None:
      return ()
    return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

  @property
  def with_usage(self) -> bool:
    """Whether a stream tells the number of tokens at its end."""
    return bool((self.stream_options or {}).get("include_usage"))


class Function(_Form):
  """A function that a model called."""

  name: str
  arguments: str = "{}"


class Called(_Form):
  """One call of an assistant's message."""

  id: str | None = None
  function: Function


class Part(_Form):
  """A part of a message; only texts are read."""

  type: Literal["text", "input_text", "output_text", "refusal"]
  text: str = ""
  refusal: str = ""


class Message(_Form):
  """A message of a conversation."""

  role: Literal["system", "developer", "user", "assistant", "tool"]
  content: str | list[Part] | None = None
  name: str | None = None
  tool_calls: list[Called] | None = None
  tool_call_id: str | None = None
  # Thoughts of an assistant, as servers of models that think name them; other
  # servers put objects there, which no template reads.
  reasoning_content: Json = None
  reasoning: Json = None
  refusal: str | None = None

  @property
  def thoughts(self) -> str:
    """Its thoughts, "" without."""
    given = (self.reasoning_content, self.reasoning)
    return next((one for one in given if one and isinstance(one, str)), "")

  @property
  def text(self) -> str:
    """All that it says."""
    if isinstance(self.content, list):
      return "".join(part.text or part.refusal for part in self.content)
    return self.content or self.refusal or ""


class FunctionTool(_Form):
  """A function that a model may call."""

  name: Annotated[str, Field(min_length=1)]
  description: str | None = None
  parameters: Object | None = None


class Tool(_Form):
  """A tool."""

  type: Literal["function"] = "function"
  function: FunctionTool


class NamedFunction(_Form):
  """The name of a function."""

  name: str


class NamedTool(_Form):
  """The tool that is to be called."""

  type: Literal["function"] = "function"
  function: NamedFunction


class ChatRequest(_Sampling):
  """`POST /v1/chat/completions`."""

  messages: Annotated[list[Message], Field(min_length=1)]
  max_tokens: Annotated[int, Field(ge=1)] | None = None
  max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
  logprobs: bool | None = None
  top_logprobs: Literal[0] | None = None
  tools: list[Tool] | None = None
  tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None

  @property
  def limit(self) -> int | None:
    """The most tokens of the answer."""
    return self.max_completion_tokens or self.max_tokens

  @property
  def forced(self) -> str | None:
    """The tool that is to be called, "" for any, None where none need be."""
    if isinstance(self.tool_choice, NamedTool):
      return self.tool_choice.function.name
    return "" if self.tool_choice == "required" else None


class CompletionRequest(_Sampling):
  """`POST /v1/completions`."""

  prompt: str | Ids
  max_tokens: Annotated[int, Field(ge=1)] | None = None
  logprobs: Literal[0, 1] | None = None
  echo: Literal[False] | None = None
  best_of: Literal[1] | None = None
  suffix: Literal[""] | None = None

  @property
  def limit(self) -> int:
    """The most tokens of the answer: 16, as everywhere, unless asked."""
    return self.max_tokens or 16


class SamplingParams(_Form):
  """How `GenerateRequest` is sampled."""

  temperature: Annotated[float, Field(ge=0, le=1e4)] | None = None
  max_tokens: Annotated[int, Field(ge=1)] | None = None
  seed: Seed | None = None
  # Of ours: the integers that random numbers are made of, in place of a seed.
  key: Annotated[list[Word], Field(min_length=1, max_length=7)] | None = None
  stop_token_ids: Annotated[Ids, Field(max_length=16)] | None = None
  top_p: TopP | None = None
  n: Literal[1] | None = None
  top_k: Literal[-1, 0] | None = None
  min_p: Literal[0] | None = None
  logprobs: Literal[0, 1] | None = None


class GenerateRequest(_Form):
  """`POST /inference/v1/generate`: token ids in and out."""

  model: str | None = None
  token_ids: Annotated[Ids, Field(min_length=1)]
  sampling_params: SamplingParams = SamplingParams()
  stream: Literal[False] | None = None


def faults(error: pydantic.ValidationError) -> tuple[str, str]:
  """The field of the first fault, and all faults in one text."""
  told, fields = [], []
  for one in error.errors(include_url=False, include_context=False):
    fields.append(".".join(map(str, one["loc"])) or "body")
    told.append(f"{fields[-1]}: {one['msg']}")
  more = f" and {len(told) - 4} more" if len(told) > 4 else ""
  return fields[0], "; ".join(told[:4]) + more


def as_template(message: Message) -> dict[str, Any]:
  """A message as chat templates take it."""
  role = "system" if message.role == "developer" else message.role
  found: dict[str, Any] = {"role": role, "content": message.text}
  if message.role == "assistant" and message.thoughts:
    found["reasoning_content"] = message.thoughts
  for name in ("name", "tool_call_id"):
    if getattr(message, name) is not None:
      found[name] = getattr(message, name)
  if message.tool_calls:
    found["tool_calls"] = [
      {
        "type": "function",
        **({"id": called.id} if called.id else {}),
        "function": {
          "name": called.function.name,
          "arguments": arguments(called.function),
        },
      }
      for called in message.tool_calls
    ]
  return found


def arguments(function: Function) -> dict[str, Any]:
  """What a function was called with.

  Raises:
    ValueError: that is no JSON object, or one that is nested too deep.
  """
  said = f"the arguments of the call of {function.name} are"
  try:
    found = json.loads(function.arguments or "{}")
    deep = is_deep(found)
  except RecursionError:
    found, deep = None, True
  except ValueError:
    found, deep = None, False
  if deep:
    raise ValueError(f"{said} nested more than {_DEEPEST} times")
  if not isinstance(found, dict):
    raise ValueError(f"{said} no JSON object: {function.arguments[:80]!r}")
  return found
