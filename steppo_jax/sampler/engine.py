"""The local engine: slots that keep their cache from turn to turn."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from steppo_jax import types
from steppo_jax.models import transformer
from steppo_jax.sampler import hand_over, programs, slot_requests, slots
from steppo_jax.sampler.options import SamplerConfig


class SlotEngine:
  """Samples with one key-value cache per slot; implements `types.Engine`.

  On each turn only the tokens that the slot does not hold are read: the
  longest common prefix of the prompt and the slot's contents is kept, and a new
  session copies the prefix that it shares with another. Slots whose response
  has ended get new work while the others go on.

  Attributes:
    num_slots: Most responses under way at once.
    counters: What has been done so far.
  """

  def __init__(
    self,
    model: transformer.ModelConfig,
    config: SamplerConfig,
    *,
    context: int,
    max_new_tokens: int,
    end_of_turn_id: int,
    seed: int,
    devices: Sequence[jax.Device] | None = None,
    cuts: bool = False,
  ):
    """Allocates the slots; no program is compiled yet.

    Args:
      model: Sizes of the decoder.
      config: Shapes.
      context: Longest trajectory in tokens.
      max_new_tokens: Longest response in tokens, end-of-turn included.
      end_of_turn_id: The token that ends every response; a request may name
        more of them. -1 for none.
      seed: Root of all keys.
      devices: Those of this process that slots are split over, as far as
        there are slots for them (`split.parts_of`); None for all.
      cuts: Whether requests may have a `top_p`, with programs of its own. What
        such a request is answered is not for training: the learner's
        probabilities are those of the whole softmax.

    Raises:
      ValueError: `config.tensor` does not fit the model or the devices, or
        `config.attention` the model.
    """
    n = config.num_slots
    self.num_slots = n
    self.counters = types.EngineCounters()
    self._config = config
    self._model = model
    self._end_of_turn = end_of_turn_id
    self._version: int | None = None
    self._context = context
    self._max_new_tokens = max_new_tokens
    self._refill = config.refill or max(1, n // 8)
    self._device = programs.Programs(
      model,
      num_slots=n,
      context=context,
      max_new_tokens=max_new_tokens,
      prefill_lengths=config.prefill_lengths,
      seed=seed,
      devices=devices or jax.local_devices(),
      shared_by=config.tensor,
      cuts=cuts,
      attention=config.attention,
    )
    self._cuts = cuts
    self._slots = slots.Slots(n, context, self._device.parts)
    self._queue: list[slots.PrefillPlan] = []
    self._under_way: dict[int, types.Request] = {}
    self._count = np.zeros(n, np.int32)
    self._asked = slot_requests.SlotRequests.none(n)

  def set_params(self, params: Any, version: int) -> None:
    """Takes new weights; caches made by other weights are dropped.

    With `keep_cache_across_versions` sessions that go on keep theirs. See
    `hand_over.for_sampler` for how weights come here from the learner.

    Raises:
      RuntimeError: responses are under way.
    """
    self._require_rest()
    # The old ones go first: a device may have no room for both.
    self._device.params = self._version = None
    self.swap(self.prepare(params), version)

  def prepare(self, params: Any) -> Any:
    """Weights in the form that `swap` takes; see `types.Engine`."""
    return hand_over.for_sampler(self._model, params, self._device.mesh)

  def swap(self, prepared: Any, version: int) -> None:
    """As `set_params`, of weights that are prepared.

    Raises:
      RuntimeError: responses are under way.
    """
    self._require_rest()
    self._device.params, self._version = prepared, version
    if self._config.keep_cache_across_versions:
      self._slots.outlive()
    else:
      self._slots.clear()

  def close(self) -> None:
    """Leaves the devices to others: nothing can be sampled any more."""
    self._device.drop()
    self._version = None

  def warm_up(self) -> None:
    """Compiles every program that requests can need."""
    self._require_params("warm_up")
    self._device.warm_up()

  def release(self, session: str) -> None:
    """Frees the slot of a trajectory that has ended.

    Raises:
      RuntimeError: a response of the session is under way.
    """
    if any(r.session == session for r in self._under_way.values()):
      raise RuntimeError(f"session {session}: a response is under way")
    self._slots.release(session)

  def submit(self, requests: Sequence[types.Request]) -> None:
    """Takes requests in; `poll` answers them. All are refused or none.

    Raises:
      ValueError: an empty prompt, a prompt and response that do not fit the
        context, or two requests of one session under way.
      RuntimeError: no weights yet, or no free slot for a new session.
    """
    self._check(requests)
    for request in requests:
      read = self._slots.plan(request.session, request.prompt_ids)
      slot = read.slot
      self._queue.append(read)
      self._under_way[slot] = request
      self._count[slot] = 0
      self._asked.take(slot, request, self._stops(request))
      self.counters.prompt_tokens += len(request.prompt_ids)
      self.counters.prefill_tokens += len(read.ids)
      self.counters.copied_tokens += read.start * (read.source is not None)

  def poll(self) -> list[tuple[types.Request, types.Response]]:
    """Reads what was submitted and samples until some responses have ended.

    Returns:
      The requests whose responses have ended, by slot: none if nothing is
      under way, or if `burst` tokens ended none.
    """
    if not self._under_way:
      return []
    fresh = np.zeros(self.num_slots, bool)
    fresh[[read.slot for read in self._queue]] = True
    for wave in slots.waves(self._queue):
      self._device.read(wave)
    self._queue.clear()
    live = sorted(self._under_way)
    steps, tokens = self._device.sample(
      live,
      self._asked,
      fresh,
      refill=self._refill,
      max_steps=self._config.burst,
    )
    self.counters.decode_steps += steps
    self.counters.decode_tokens += tokens
    return self._collect(live)

  def so_far(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What responses under way have: [R] int32 ids and [R] float32 log-probs.

    By session; all of them come from the device at once.
    """
    turns = self._device.turns
    ids, logp = jax.device_get((turns.ids, turns.behaviour_logp))
    found = {}
    for slot, request in self._under_way.items():
      n = self._count[slot]
      found[request.session] = ids[slot, :n].copy(), logp[slot, :n].copy()
    return found

  def cut(self, session: str) -> None:
    """Lets a response under way end at its next token, as at its limit."""
    for slot, request in self._under_way.items():
      if request.session == session:
        self._asked.limit[slot] = max(1, self._count[slot])

  def generate(self, requests: Sequence[types.Request]) -> list[types.Response]:
    """Answers all requests, at most `num_slots`, in their order.

    Raises:
      ValueError: see `submit`; also too many requests.
      RuntimeError: see `submit`; also responses under way.
    """
    if self._under_way:
      raise RuntimeError("generate was called while responses are under way")
    self.submit(requests)
    done: dict[str, types.Response] = {}
    while self._under_way:
      done |= {r.session: response for r, response in self.poll()}
    return [done[r.session] for r in requests]

  def _collect(self, live):
    """Responses that have ended; their slots stay with their sessions."""
    turns = self._device.turns
    count, alive = jax.device_get((turns.count, turns.live))
    self._count = np.array(count)  # to be written to
    ended = [slot for slot in live if not alive[slot]]
    if not ended:
      return []
    ids, behaviour_logp = jax.device_get((turns.ids, turns.behaviour_logp))
    found = []
    for slot in ended:
      n = self._count[slot]
      response = ids[slot, :n].copy()
      self._slots.wrote(slot, response[:-1])
      request = self._under_way.pop(slot)
      stopped = response[-1] in self._stops(request)
      found.append(
        (
          request,
          types.Response(
            response,
            behaviour_logp[slot, :n].copy(),
            "stop" if stopped else "length",
            self._version,
          ),
        )
      )
    return found

  def _stops(self, request: types.Request) -> tuple[int, ...]:
    """The tokens that end the response to a request."""
    return tuple(dict.fromkeys((self._end_of_turn, *request.stop_ids)))

  @property
  def held(self) -> dict[str, Any]:
    """What it has on its devices, by what it is."""
    return self._device.held

  @property
  def version(self) -> int | None:
    """Updates behind the weights it holds; None before the first weights."""
    return self._version

  @property
  def compiles(self) -> int:
    """Programs compiled so far; constant after `warm_up`."""
    return self._device.compiles

  def _require_rest(self) -> None:
    if self._under_way:
      raise RuntimeError(
        f"{len(self._under_way)} responses are under way: poll until they have "
        "ended before the weights change"
      )

  def _require_params(self, caller: str) -> None:
    if self._version is None:
      raise RuntimeError(f"set_params must be called before {caller}")

  def _check(self, requests):
    self._require_params("submit")
    if len(requests) + len(self._under_way) > self.num_slots:
      under_way = len(self._under_way)
      raise ValueError(
        f"{len(requests)} requests and {under_way} under way for "
        f"sampler.num_slots={self.num_slots}"
      )
    sessions = [r.session for r in requests]
    both = sessions + [r.session for r in self._under_way.values()]
    if len(set(both)) < len(both):
      raise ValueError("two requests of one session under way")
    for r in requests:
      if len(r.key) > slot_requests.KEY_LENGTH:
        raise ValueError(
          f"session {r.session}: a key of {len(r.key)} integers, at most "
          f"{slot_requests.KEY_LENGTH} are taken"
        )
      if len(self._stops(r)) > slot_requests.MAX_STOPS:
        raise ValueError(
          f"session {r.session}: {len(self._stops(r))} tokens end the "
          f"response, at most {slot_requests.MAX_STOPS} may"
        )
      if not 0 < r.top_p <= 1 or (r.top_p < 1 and not self._cuts):
        raise ValueError(
          f"session {r.session}: top_p={r.top_p}, and this engine samples from "
          "the whole softmax"
        )
      if len(r.prompt_ids) == 0:
        raise ValueError(f"session {r.session}: empty prompt")
      if not 1 <= r.max_new_tokens <= self._max_new_tokens:
        raise ValueError(
          f"session {r.session}: {r.max_new_tokens} new tokens asked for, "
          f"the engine's limit is {self._max_new_tokens}, the least 1"
        )
      if len(r.prompt_ids) + r.max_new_tokens > self._context:
        raise ValueError(
          f"session {r.session}: prompt of {len(r.prompt_ids)} and response "
          f"of {r.max_new_tokens} tokens exceed the context of "
          f"{self._context}"
        )
    self._slots.check_room(sessions)
