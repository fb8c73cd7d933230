"""Servers that sample for a run: our own, and those of vLLM and SGLang.

Each takes weights (`send`, then `use`) and answers requests with them. What an
answer tells of the weights that sampled it is compared with what was asked for.

Sources: vLLM's and SGLang's endpoints as their servers' code has them, versions
0.32 and 0.5.23; the fields are those that trl 1.16.0 reads.
"""

import contextlib
import hashlib
import http.client
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from steppo_jax import types
from steppo_jax.serving.engines import connection

# Times in a row that an upload breaks off without a byte more.
_ATTEMPTS, _BACK_OFF_S = 6, 0.1


class Package(NamedTuple):
  """Weights as they are sent.

  Attributes:
    path: The file, or the folder of adapters that servers see too.
    name: SHA-256 of the file, or what servers call the adapters.
  """

  path: pathlib.Path
  name: str


class WrongWeights(RuntimeError):
  """A server sampled with other weights than it was asked to."""


class Server(Protocol):
  """One server. Any thread may ask it; one thread changes its weights.

  Attributes:
    address: Where it is.
  """

  address: str

  def connect(self) -> int:
    """Asks what the server is; returns how many responses it samples at once.

    Raises:
      connection.Lost: it does not answer.
      ValueError: it does not fit the run.
    """

  def send(self, package: Package) -> None:
    """Has weights ready there, which are not sampled with yet.

    Raises:
      connection.Lost: it does not answer.
      connection.Refused: it does not take them.
    """

  def use(self, package: Package, version: int) -> None:
    """Has it sample with weights that are ready; raises as `send` does."""

  def answer(self, request: types.Request) -> types.Response:
    """Samples one response.

    Raises:
      connection.Lost: it does not answer.
      connection.Refused: it does not take the request.
      WrongWeights: others sampled it.
      RuntimeError: its answer is none.
    """

  def close(self) -> None:
    """Breaks off what is under way, and has adapters unloaded."""


class PolicyServer:
  """`serve policy --accept-weights`: whole policies or adapters by HTTP."""

  def __init__(self, made: connection.Connection, facts: Mapping[str, Any]):
    """Nothing is sent yet.

    Args:
      made: Leads there.
      facts: What the server has to agree with; see `handed_out.facts`.
    """
    self._connection, self._facts = made, facts
    self.address = made.address
    self._wanted: tuple[int, str] | None = None
    self.close = made.close

  def connect(self) -> int:
    try:
      found = self._connection.ask("GET", "/weights")
    except connection.Refused as error:
      raise ValueError(
        f"{error}: it has to be started with `serve policy --accept-weights` "
        "and the key of the variable STEPPO_API_KEY"
      ) from error
    ours = dict(self._facts)
    for name in ("context", "max_new_tokens"):
      if found[name] < ours[name]:
        raise ValueError(
          f"{self.address} has {name}={found[name]} and the run needs "
          f"{ours[name]}: raise its --context"
        )
    model, other = ours["model"], found["model"]
    differ = [k for k in sorted(model | other) if model.get(k) != other.get(k)]
    told = [f"{k}={other.get(k)} there, {model.get(k)} here" for k in differ]
    if found["tokenizer"] != ours["tokenizer"]:
      told.append("another tokenizer")
    if found["seed"] != ours["seed"]:
      told.append(f"--seed {found['seed']} there, seed={ours['seed']} here")
    if told:
      raise ValueError(
        f"{self.address} does not sample as this run does: {'; '.join(told)}"
      )
    return found["slots"]

  def send(self, package: Package) -> None:
    size = package.path.stat().st_size
    last, failed, told = -1, 0, ""
    while failed < _ATTEMPTS:
      state = self._connection.ask(
        "POST", "/weights", {"sha256": package.name, "bytes": size}
      )
      if state["ready"]:
        return
      offset = state["offset"]
      if offset <= last:
        time.sleep(_BACK_OFF_S * 2**failed)
        failed += 1
      else:
        failed = 0
      last = offset
      try:
        status, text = self._connection.send(
          f"/weights/{package.name}", package.path, offset
        )
        told = f"{status}: {text[:500]}"
      except (OSError, http.client.HTTPException) as error:
        status, told = 0, repr(error)
      # Another sender, a byte that has changed on its way, or a server that was
      # started anew and is told again what will come.
      if status not in (0, 200, 404, 408, 409, 422) and status < 500:
        raise connection.Refused(status, f"{self.address}: {told}")
    raise connection.Lost(f"the weights do not get there: {told}")

  def use(self, package: Package, version: int) -> None:
    load = f"/weights/{package.name}/load", {"version": version}
    try:
      self._connection.ask("POST", *load)
    except connection.Refused as error:
      if error.status != 404:
        raise
      # It keeps the newest alone, which may be newer, or was started anew.
      self.send(package)
      self._connection.ask("POST", *load)
    self._wanted = version, package.name

  def answer(self, request: types.Request) -> types.Response:
    found = self._connection.ask("POST", "/inference/v1/generate", {
      "token_ids": request.prompt_ids.tolist(),
      "sampling_params": {
        "temperature": request.temperature,
        "max_tokens": request.max_new_tokens,
        "stop_token_ids": list(request.stop_ids),
        "key": list(request.key),
        "logprobs": 1,
      },
    })  # fmt: skip
    with _readable(self.address, found):
      by = found["weight_version"], found["weight_digest"]
      if by != self._wanted:
        raise WrongWeights(
          f"{self.address} sampled with weights of {by[0]} updates "
          f"({(by[1] or 'those it began with')[:19]}), and was asked for "
          f"{self._wanted[0]} ({self._wanted[1][:12]}): does another run use "
          "it, or was it started anew?"
        )
      choice = found["choices"][0]
      logp = [one["logprob"] for one in choice["logprobs"]["content"]]
      return _response(
        request, choice["token_ids"], logp, choice["finish_reason"], by[0]
      )


# Seconds that a server may take to forget adapters at the end of a run.
_CLOSE_S = 5.0

# Tokens that vLLM takes a bias for.
_MOST_BIASED = 1024


class AdapterForm(NamedTuple):
  """How a kind of server takes adapters and requests for them.

  Attributes:
    load: Where adapters are loaded.
    unload: Where they are unloaded.
    shown: How requests name them.
    options: Sent with each request, so that responses end where the run says
      and not also where the model's own files do. SGLang has no such option:
      its `ignore_eos` ignores `stop_token_ids`, too (0.5.23).
  """

  load: str
  unload: str
  shown: str
  options: Mapping[str, Any]


ADAPTER_FORMS = {
  "vllm": AdapterForm(
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "{name}",
    {"ignore_eos": True},
  ),
  "sglang": AdapterForm(
    "/load_lora_adapter", "/unload_lora_adapter", "{base}:{name}", {}
  ),
}  # fmt: skip


class AdapterServer:
  """vLLM or SGLang: adapters by name, from a folder that it sees too."""

  def __init__(
    self,
    made: connection.Connection,
    form: str,
    *,
    model: str | None,
    context: int,
    slots: int,
    stop_ids: Sequence[int],
    unknown: range = range(0),
  ):
    """Nothing is sent yet.

    Args:
      made: Leads there.
      form: A name of `ADAPTER_FORMS`.
      model: What it calls the base; None for the one that it serves.
      context: Tokens that prompt and response may have together.
      slots: Responses that it is to sample at once.
      stop_ids: Tokens that end every response, beside those of requests.
      unknown: Rows of the model's vocabulary behind the ids that its tokenizer
        knows. The learner gives them no probability.
    """
    self._connection, self._base = made, model
    self.address = made.address
    self._form = ADAPTER_FORMS[form]
    self._context, self._slots = context, slots
    self._stop_ids = tuple(i for i in stop_ids if i >= 0)
    self._unknown = unknown
    self._options = dict(self._form.options)
    # The servers sample all rows, if they are not told.
    if 0 < len(unknown) <= _MOST_BIASED:
      self._options["logit_bias"] = {str(i): -100.0 for i in unknown}
    self._wanted: tuple[str, int] | None = None
    self._sent: list[str] = []

  def connect(self) -> int:
    try:
      served = self._connection.ask("GET", "/v1/models")["data"]
    except (connection.Refused, KeyError, TypeError) as error:
      raise ValueError(f"{self.address} tells no models: {error}") from error
    names = [one["id"] for one in served]
    base = self._base or (names[0] if names else None)
    if base not in names:
      raise ValueError(
        f"{self.address} serves {names}, not engines.model={self._base}"
      )
    longest = served[names.index(base)].get("max_model_len")
    if longest is not None and longest < self._context:
      raise ValueError(
        f"{self.address} takes {longest} tokens, the run needs "
        f"rollout.max_tokens={self._context}"
      )
    self._base = base
    return self._slots

  def send(self, package: Package) -> None:
    load = self._form.load, {
      "lora_name": package.name, "lora_path": str(package.path.absolute()),
    }  # fmt: skip
    try:
      self._connection.ask("POST", *load)
    except connection.Refused as error:
      if "already" not in str(error):
        raise
      # Its name is made of its numbers: what is there is the same. But servers
      # read the folder again at any time, and that of another run may be gone.
      if package.name not in self._sent:
        self._forget(self._connection, package.name)
        self._connection.ask("POST", *load)
    self._sent.append(package.name)

  def use(self, package: Package, version: int) -> None:
    shown = self._form.shown.format(base=self._base, name=package.name)
    self._wanted = shown, version
    # What was sent later is to be used later.
    while self._sent[0] != package.name:
      old = self._sent.pop(0)
      if old not in self._sent:
        self._forget(self._connection, old)

  def close(self) -> None:
    self._connection.close()
    # Their folders are removed next, which the server reads again at any time.
    last = self._connection.anew(_CLOSE_S)
    with contextlib.suppress(connection.Lost), contextlib.closing(last):
      for name in dict.fromkeys(self._sent):
        self._forget(last, name, attempts=1)

  def _forget(self, via: connection.Connection, name: str, **options) -> None:
    """Unloads adapters; a server that was started anew does not know them."""
    with contextlib.suppress(connection.Refused):
      via.ask("POST", self._form.unload, {"lora_name": name}, **options)

  def answer(self, request: types.Request) -> types.Response:
    name, version = self._wanted
    stop_ids = dict.fromkeys((*self._stop_ids, *request.stop_ids))
    prompt = request.prompt_ids.tolist()
    found = self._connection.ask("POST", "/v1/completions", {
      "model": name,
      "prompt": prompt,
      "max_tokens": request.max_new_tokens,
      "temperature": request.temperature,
      "seed": _seed(request.key),
      "stop_token_ids": list(stop_ids),
      # What a model's own files say of sampling would be taken otherwise.
      "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
      "presence_penalty": 0.0, "frequency_penalty": 0.0,
      "logprobs": 1,
      "return_token_ids": True,
      "skip_special_tokens": False,
      **self._options,
    })  # fmt: skip
    with _readable(self.address, found):
      if found["model"] != name:
        raise WrongWeights(
          f"{self.address} sampled with {found['model']!r} and was asked for "
          f"{name!r}"
        )
      choice = found["choices"][0]
      read = choice.get("prompt_token_ids") or prompt
      if read != prompt:
        raise RuntimeError(
          f"{self.address} read {len(read)} tokens, other ones than the "
          f"{len(prompt)} of the prompt"
        )
      ids = choice["token_ids"]
      if strange := [i for i in ids if i in self._unknown]:
        raise ValueError(
          f"token ids {strange}, of which the tokenizer knows none (it has "
          f"{self._unknown.start})"
        )
      return _response(
        request, ids, choice["logprobs"]["token_logprobs"],
        choice["finish_reason"], version, tuple(stop_ids),
      )  # fmt: skip


@contextlib.contextmanager
def _readable(address: str, found: Any) -> Iterator[None]:
  """Names the server in errors of what its answer lacks."""
  try:
    yield
  except (KeyError, TypeError, IndexError, ValueError) as error:
    raise RuntimeError(
      f"{address}: an answer that cannot be read ({error!r}): "
      f"{str(found)[:200]}"
    ) from error


def _seed(key: Sequence[int]) -> int:
  """A seed of 63 bits, of the integers of a key."""
  text = ",".join(map(str, key)).encode()
  digest = hashlib.blake2b(text, digest_size=8).digest()
  return int.from_bytes(digest, "little") >> 1


def _response(
  request: types.Request,
  ids: Sequence[int],
  logp: Sequence[float],
  reason: str,
  version: int,
  stop_ids: Sequence[int] | None = None,
) -> types.Response:
  """A response of an answer's parts.

  Raises:
    ValueError: they do not belong together.
  """
  if reason not in ("stop", "length"):
    raise ValueError(f"it ended by {reason!r}, not by a stop or a limit")
  if len(ids) != len(logp):
    raise ValueError(f"{len(ids)} tokens with {len(logp)} log-probs")
  if not 1 <= len(ids) <= request.max_new_tokens:
    raise ValueError(
      f"{len(ids)} tokens, where 1 to {request.max_new_tokens} were asked for"
    )
  # -9999 is what servers write where they know none.
  if not all(math.isfinite(x) and -9999 < x < 1e-3 for x in logp):
    raise ValueError(f"log-probs that are none: {list(logp)[:8]}")
  if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
    raise ValueError(f"token ids that are none: {list(ids)[:8]}")
  if stop_ids is not None and reason == "stop" and ids[-1] not in stop_ids:
    raise ValueError(
      f"it ended by {ids[-1]}, which ends no response of the run ({stop_ids} "
      "do): what ended it is missing, or the server's model ends by others"
    )
  return types.Response(
    np.array(ids, np.int32), np.array(logp, np.float32), reason, version
  )
