"""Small real parts that several tests share: policy, games, rollouts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from steppo_jax import types
from steppo_jax.envs.household import env as household
from steppo_jax.envs.household import worlds as household_worlds
from steppo_jax.models import transformer
from steppo_jax.ops import attention, logprobs
from steppo_jax.prompts import base as prompt_base
from steppo_jax.rollout import loop
from steppo_jax.rollout import options as rollout_options
from steppo_jax.sampler import engine as engine_lib
from steppo_jax.sampler import options as sampler_options
from steppo_jax.tokenizer import sentencepiece_tokenizer as tokenizer_lib

CONTEXT = 128
ROLLOUT = rollout_options.RolloutConfig(
  max_steps=5, max_tokens=CONTEXT, max_new_tokens=8
)


@functools.cache
def tokenizer():
  return tokenizer_lib.SentencePieceTokenizer()


def model():
  return transformer.ModelConfig(
    vocab_size=tokenizer().vocab_size,
    width=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=48,
  )


@functools.cache
def policy(seed=0):
  """Random weights, large enough that the distribution is far from flat."""
  made = lambda key: jax.tree.map(
    lambda x: x * 1.5, transformer.init(model(), key)
  )
  return jax.jit(made)(jax.random.key(seed))


def engine(num_slots=8, seed=0, **options):
  made = engine_lib.SlotEngine(
    model(),
    sampler_options.SamplerConfig(
      num_slots=num_slots, prefill_lengths=(16, 64), **options
    ),
    context=CONTEXT,
    max_new_tokens=ROLLOUT.max_new_tokens,
    end_of_turn_id=tokenizer().end_of_turn_id,
    seed=seed,
  )
  made.set_params(policy(), 0)
  return made


def episodes(count, *, samples=1):
  return [
    loop.Episode(
      f"e{n}-{j}",
      household_worlds.generate(n, split="train", size="tiny"),
      0,
      (0, 0, n, j),
    )
    for n in range(count)
    for j in range(samples)
  ]


@functools.cache
def trajectories(count=12, samples=1):
  """Real episodes of a random policy: refused commands, cut responses.

  Such a policy is refused at every step, which gives all episodes one reward;
  noise takes its place. Nor does it think: some tokens are called thoughts.
  """
  rng, thoughts = np.random.default_rng(0), np.random.default_rng(1)
  noisy = lambda steps: tuple(
    dataclasses.replace(
      s,
      reward=float(rng.normal()),
      reasoning_mask=thoughts.uniform(size=len(s.response_ids)) < 0.4,
    )
    for s in steps
  )
  played = loop.run(
    # A seed of which some responses end early.
    engine(seed=3),
    functools.partial(household.HouseholdEnv, invalid_penalty=0.1),
    episodes(count, samples=samples),
    prompt_base.CompactPrompt(tokenizer()),
    ROLLOUT,
  )
  lengths = {len(step.response_ids) for t in played for step in t.steps}
  assert len(lengths) > 1, "tests of weightings need ragged responses"
  return tuple(dataclasses.replace(t, steps=noisy(t.steps)) for t in played)


class ScriptedEngine:
  """An engine that answers from a script: text by (session, turn).

  A session that was released starts over, as equal keys give equal samples.
  """

  def __init__(self, answer, num_slots=4):
    self.num_slots = num_slots
    self._answer = answer
    self._asked = []
    self.turns = {}
    self.released = []

  def submit(self, requests):
    self._asked += requests

  def poll(self):
    asked, self._asked = self._asked, []
    return [(request, self._respond(request)) for request in asked]

  def _respond(self, request):
    turn = self.turns.get(request.session, 0)
    self.turns[request.session] = turn + 1
    text = self._answer(request.session, turn)
    ids = prompt_base.CompactPrompt(tokenizer()).response(text)
    logps = np.full(len(ids), -1.0, np.float32)
    return types.Response(ids, logps, "stop", 0)

  def release(self, session):
    self.turns.pop(session, None)
    self.released.append(session)


@functools.partial(jax.jit, static_argnames="temperature")
def _logprobs(ids, params, *, temperature):
  t = ids.shape[1]
  end = jnp.full((1, t), t)
  attend = lambda q, k, v: attention.interval_attention(q, k, v, end, block=16)
  positions = jnp.arange(t)[None]
  hidden = transformer.apply(model(), params, ids, positions, attend)
  logp, _ = logprobs.next_token_logprobs(
    hidden, params["embed"]["embedding"], ids,
    jnp.maximum(positions - 1, 0), positions > 0, chunk=16,
    temperature=temperature, softcap=None,
  )  # fmt: skip
  return logp[0]


def learner_logprobs(ids, temperature=1.0, params=None):
  """log p of every token of one sequence, by the learner's own forward."""
  params = policy() if params is None else params
  padded = np.pad(ids, (0, CONTEXT - len(ids))).astype(np.int32)
  return np.asarray(_logprobs(padded[None], params, temperature=temperature))[
    : len(ids)
  ]
