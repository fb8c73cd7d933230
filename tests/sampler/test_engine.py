"""The sampler: exact log-probs, history read once, no compile after warm-up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from steppo_jax import types
from steppo_jax.models import transformer
from steppo_jax.ops import logprobs
from steppo_jax.sampler import draw, options
from steppo_jax.sampler import engine as engine_lib


def request(session, prompt, *, key=(0,), new=6, temperature=1.0):
  ids = np.asarray(prompt, np.int32)
  return types.Request(session, ids, key, new, temperature)


def conversation(engine, turns=4, temperature=1.0):
  """Several sessions over several turns; returns the last prompts."""
  rng = np.random.default_rng(0)
  vocab = worlds.tokenizer().vocab_size
  prompts = [rng.integers(3, vocab, n) for n in (5, 17, 70)]
  spans = [[] for _ in prompts]
  for turn in range(turns):
    answers = engine.generate(
      [
        request(str(i), p, key=(i, turn), temperature=temperature)
        for i, p in enumerate(prompts)
      ]
    )
    for i, answer in enumerate(answers):
      spans[i].append((len(prompts[i]), answer))
      seen = rng.integers(3, vocab, 4)
      prompts[i] = np.concatenate([prompts[i], answer.response_ids, seen])
  return prompts, spans


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_rollout_logprobs_equal_the_learners_over_many_turns(temperature):
  prompts, spans = conversation(worlds.engine(), temperature=temperature)
  for ids, turns in zip(prompts, spans, strict=True):
    expected = worlds.learner_logprobs(ids, temperature)
    for start, answer in turns:
      got = answer.behaviour_logp
      want = expected[start : start + len(got)]
      np.testing.assert_allclose(got, want, atol=1e-4)


def test_each_token_of_a_conversation_is_read_once():
  engine = worlds.engine()
  prompts, spans = conversation(engine)
  read = sum(len(p) - 4 for p in prompts)  # the last 4 were never asked for
  sampled = sum(len(a.response_ids) for turns in spans for _, a in turns)
  # A sampled token enters the cache while decoding, but for each turn's last,
  # which the next prompt brings; the last turn's is never read.
  last = len(prompts) * 3
  assert engine.counters.prefill_tokens == read - sampled + last
  assert engine.counters.prompt_tokens > 2 * engine.counters.prefill_tokens


def test_nothing_compiles_after_warm_up():
  engine = worlds.engine(num_slots=5)  # as no other test's
  engine.warm_up()
  before = engine.compiles
  assert before > 0
  conversation(engine, turns=6)
  assert engine.compiles == before


@pytest.mark.slow
def test_an_engine_like_one_before_compiles_nothing():
  worlds.engine(num_slots=3).warm_up()
  engine = worlds.engine(num_slots=3)
  engine.warm_up()
  assert engine.compiles == 0
  other = worlds.engine(num_slots=3, seed=1)
  other.warm_up()
  assert other.compiles > 0


def test_samples_depend_on_the_key_and_not_on_the_company():
  prompt = np.arange(10, 30)
  alone = worlds.engine().generate([request("a", prompt, key=(7, 1))])[0]
  crowd = [request(str(i), prompt[: 5 + i], key=(i, 0)) for i in range(5)]
  mixed = worlds.engine().generate([*crowd, request("a", prompt, key=(7, 1))])
  np.testing.assert_array_equal(alone.response_ids, mixed[-1].response_ids)
  other = worlds.engine().generate([request("a", prompt, key=(7, 2))])[0]
  assert alone.response_ids.tolist() != other.response_ids.tolist()


@pytest.mark.slow
def test_temperature_zero_takes_the_most_likely_token():
  prompt = np.arange(10, 30)
  first = worlds.engine().generate([request("a", prompt, temperature=0.0)])[0]
  again = worlds.engine(seed=5).generate(
    [request("a", prompt, key=(9,), temperature=0.0)]
  )[0]
  np.testing.assert_array_equal(first.response_ids, again.response_ids)
  ids = np.append(prompt, first.response_ids[0])
  best = max(
    worlds.learner_logprobs(np.append(prompt, token))[-1]
    for token in range(0, worlds.tokenizer().vocab_size, 7)
  )
  assert worlds.learner_logprobs(ids)[-1] >= best - 1e-6


def test_sampled_frequencies_follow_the_probabilities():
  # 40 draws of 8 slots from one prompt: 320 first tokens.
  prompt = np.arange(10, 30)
  engine = worlds.engine()
  count, logps = 0, []
  expected = 0.0
  greedy = engine.generate([request("g", prompt, new=1, temperature=0.0)])[0]
  engine.release("g")
  probability = float(np.exp(greedy.behaviour_logp[0]))
  for n in range(40):
    answers = engine.generate(
      [request(str(i), prompt, key=(n, i), new=1) for i in range(8)]
    )
    count += sum(a.response_ids[0] == greedy.response_ids[0] for a in answers)
    logps += [a.behaviour_logp[0] for a in answers]
  expected = 320 * probability
  deviation = np.sqrt(320 * probability * (1 - probability))
  assert 0.02 < probability < 0.98
  assert abs(count - expected) < 4 * deviation


def test_a_prompt_that_was_rewritten_is_read_from_where_it_differs():
  engine = worlds.engine()
  prompt = np.arange(10, 40)
  engine.generate([request("a", prompt)])
  before = engine.counters.prefill_tokens
  changed = prompt.copy()
  changed[20] = 3
  answer = engine.generate([request("a", changed, key=(4,))])[0]
  assert engine.counters.prefill_tokens - before == 10
  ids = np.concatenate([changed, answer.response_ids])
  want = worlds.learner_logprobs(ids)[len(changed) :]
  np.testing.assert_allclose(answer.behaviour_logp, want, atol=1e-4)


def test_new_weights_drop_the_cache():
  engine = worlds.engine()
  prompt = np.arange(10, 40)
  engine.generate([request("a", prompt)])
  engine.set_params(worlds.policy(1), 3)
  before = engine.counters.prefill_tokens
  answer = engine.generate([request("a", prompt)])[0]
  assert engine.counters.prefill_tokens - before == len(prompt)
  assert answer.policy_version == 3


def test_prepared_weights_wait_for_the_responses_under_way():
  engine, other = (
    worlds.engine(),
    jax.tree.map(lambda x: x * 1.5, worlds.policy()),
  )
  asked = request("a", [5, 6, 7])
  engine.submit([asked])
  prepared = engine.prepare(other)
  with pytest.raises(RuntimeError, match="1 responses are under way"):
    engine.swap(prepared, 4)
  while not (ended := engine.poll()):
    pass
  assert ended[0][1].policy_version == 0
  engine.swap(prepared, 4)
  swapped = engine.generate([request("b", [5, 6, 7], key=(1,))])[0]
  engine.set_params(other, 4)
  whole = engine.generate([request("b", [5, 6, 7], key=(1,))])[0]
  assert swapped.policy_version == whole.policy_version == 4
  np.testing.assert_array_equal(swapped.response_ids, whole.response_ids)
  np.testing.assert_array_equal(swapped.behaviour_logp, whole.behaviour_logp)
  engine.release("a"), engine.release("b")


def test_the_limit_ends_a_response():
  answers = worlds.engine().generate(
    [request(str(i), [9, 10, 11], key=(i,), new=3) for i in range(8)]
  )
  end = worlds.tokenizer().end_of_turn_id
  for answer in answers:
    stopped = answer.response_ids[-1] == end
    assert answer.stop_reason == ("stop" if stopped else "length")
    assert stopped or len(answer.response_ids) == 3


@pytest.mark.parametrize(
  ("requests", "message"),
  [
    ([request("a", [])], "empty prompt"),
    ([request("a", [1]), request("a", [2])], "one session under way"),
    ([request(str(i), [1]) for i in range(9)], "num_slots=8"),
    ([request("a", [1] * 124)], "context"),
    ([request("a", [1], new=99)], "limit"),
    ([request("a", [1], new=0)], "the least 1"),
    ([request("a", [1], key=range(8))], "at most 7"),
  ],
)
def test_requests_that_cannot_be_served_are_refused(requests, message):
  with pytest.raises(ValueError, match=message):
    worlds.engine().generate(requests)


@pytest.mark.parametrize(
  ("option", "value"),
  [("num_slots", 0), ("burst", 0), ("refill", -1), ("prefill_lengths", ()),
   ("prefill_lengths", (16, 8)), ("prefill_lengths", (0, 8))],
)  # fmt: skip
def test_shapes_that_cannot_be_are_refused(option, value):
  with pytest.raises(ValueError, match=f"sampler.{option}="):
    options.SamplerConfig(**{option: value})


@pytest.mark.slow
def test_an_ended_response_makes_room_while_a_long_one_goes_on():
  alone = {}
  asked = {
    "long": request("long", np.arange(10, 30), key=(1,), new=8),
    "short": request("short", np.arange(40, 50), key=(2,), new=1),
    "late": request("late", np.arange(60, 75), key=(3,), new=2),
  }
  for name, one in asked.items():
    alone[name] = worlds.engine().generate([one])[0]
  assert len(alone["long"].response_ids) > 4
  engine = worlds.engine(num_slots=2)
  engine.submit([asked["long"], asked["short"]])
  found = engine.poll()
  assert [r.session for r, _ in found] == ["short"]
  engine.release("short")
  engine.submit([asked["late"]])
  found += engine.poll()
  assert [r.session for r, _ in found] == ["short", "late"]
  while len(found) < 3:
    found += engine.poll()
  assert engine.poll() == []
  for one, response in found:
    want = alone[one.session]
    np.testing.assert_array_equal(response.response_ids, want.response_ids)
    np.testing.assert_allclose(
      response.behaviour_logp, want.behaviour_logp, atol=1e-5
    )


@pytest.mark.slow
def test_a_burst_lets_new_requests_in():
  engine = worlds.engine(num_slots=2, burst=2)
  engine.submit([request("a", np.arange(10, 30), key=(1,), new=8)])
  assert engine.poll() == []  # 3 of 8 tokens
  engine.submit([request("b", np.arange(40, 50), key=(2,), new=1)])
  assert [r.session for r, _ in engine.poll()] == ["b"]


def test_members_of_a_group_read_their_prompt_once():
  prompt = np.arange(10, 80)
  group = [request(f"g{i}", prompt, key=(i,)) for i in range(4)]
  other = request("o", np.arange(100, 140), key=(9,))
  engine = worlds.engine()
  answers = engine.generate([group[0], other, *group[1:]])
  # One member reads all, the others their last token.
  assert engine.counters.prefill_tokens == len(prompt) + 3 + 40
  assert engine.counters.copied_tokens == 3 * (len(prompt) - 1)
  members = [answers[0], *answers[2:]]
  assert len({tuple(a.response_ids) for a in members}) > 1
  for answer in members:
    ids = np.concatenate([prompt, answer.response_ids])
    want = worlds.learner_logprobs(ids)[len(prompt) :]
    np.testing.assert_allclose(answer.behaviour_logp, want, atol=1e-4)
  for n in range(4):
    engine.release(f"g{n}")
  engine.generate([request("late", prompt, key=(7,))])
  assert engine.counters.copied_tokens == 3 * (len(prompt) - 1)
  assert engine.counters.prefill_tokens == len(prompt) + 3 + 40 + 1


def test_weights_and_sessions_stay_while_a_response_is_under_way():
  engine = worlds.engine(num_slots=2, burst=1)
  engine.submit([request("a", np.arange(10, 30), key=(1,), new=8)])
  assert engine.poll() == []
  with pytest.raises(RuntimeError, match="under way"):
    engine.set_params(worlds.policy(), 1)
  with pytest.raises(RuntimeError, match="under way"):
    engine.release("a")
  with pytest.raises(RuntimeError, match="under way"):
    engine.generate([request("b", [1, 2])])
  with pytest.raises(ValueError, match="one session under way"):
    engine.submit([request("a", [1, 2])])
  with pytest.raises(ValueError, match="1 under way"):
    engine.submit([request("b", [1]), request("c", [1])])


def test_sessions_that_are_never_released_are_reported():
  engine = worlds.engine()
  engine.generate([request(str(i), [5, 6]) for i in range(8)])
  with pytest.raises(RuntimeError, match="release"):
    engine.generate([request("late", [5, 6])])
  engine.release("3")
  assert len(engine.generate([request("late", [5, 6])])) == 1


def test_an_engine_without_weights_says_so():
  engine = engine_lib.SlotEngine(
    worlds.model(), options.SamplerConfig(num_slots=2), context=64,
    max_new_tokens=4, end_of_turn_id=2, seed=0,
  )  # fmt: skip
  with pytest.raises(RuntimeError, match=r"set_params .* warm_up"):
    engine.warm_up()
  with pytest.raises(RuntimeError, match=r"set_params .* submit"):
    engine.generate([request("a", [1])])


def test_model_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="num_heads=3"):
    dataclasses.replace(worlds.model(), num_heads=3)
  with pytest.raises(ValueError, match="head_dim=7"):
    dataclasses.replace(worlds.model(), head_dim=7)
  assert jax.tree.structure(
    transformer.abstract_params(worlds.model())
  ) == jax.tree.structure(worlds.policy())


def test_every_stop_id_of_a_request_ends_its_response():
  engine = worlds.engine(refill=8)  # Always all slots: one program.
  plain = [request(str(i), [9, 10, 11], key=(i,), new=8) for i in range(8)]
  whole = engine.generate(plain)
  compiled = engine.compiles
  rng = np.random.default_rng(0)
  # By request none to fifteen ids; some of them are sampled, most are not.
  stops = [
    tuple(
      map(int, rng.permutation([*r.response_ids[2:], *range(400, 415)])[:n])
    )
    for n, r in zip((0, 1, 2, 4, 6, 8, 12, 15), whole, strict=True)
  ]
  engine.set_params(worlds.policy(), 0)
  found = engine.generate(
    [
      dataclasses.replace(p, stop_ids=s)
      for p, s in zip(plain, stops, strict=True)
    ]
  )
  assert engine.compiles == compiled
  cut = 0
  for before, after, ids in zip(whole, found, stops, strict=True):
    at = np.flatnonzero(np.isin(before.response_ids, ids))
    size = at[0] + 1 if at.size else len(before.response_ids)
    cut += size < len(before.response_ids)
    # The same draws up to the end.
    np.testing.assert_array_equal(
      after.response_ids, before.response_ids[:size]
    )
    np.testing.assert_allclose(
      after.behaviour_logp, before.behaviour_logp[:size], atol=1e-5
    )
    assert after.stop_reason == ("stop" if at.size else before.stop_reason)
  assert cut >= 3


def test_more_stop_ids_than_fit_are_refused():
  wanted = dataclasses.replace(request("a", [9]), stop_ids=tuple(range(5, 21)))
  with pytest.raises(ValueError, match="17 tokens end the response"):
    worlds.engine().generate([wanted])


@pytest.mark.slow
def test_rows_without_a_token_are_never_sampled():
  # Their logits are the largest by far.
  model = transformer.ModelConfig(vocab_size=70, num_ids=64, width=8)
  table = jax.random.normal(jax.random.key(0), (70, 8))
  hidden = jax.random.normal(jax.random.key(1), (5, 8))
  params = {"embed": {"embedding": table.at[64:].set(50 * hidden[0])}}
  logits = transformer.logits(model, params, hidden)
  assert logits.shape == (5, 64)
  tokens = jnp.arange(59, 64)[None]
  logp, entropy = logprobs.next_token_logprobs(
    hidden[None], transformer.unembedding(params, model.num_ids), tokens,
    jnp.arange(5)[None], jnp.ones((1, 5), bool), chunk=4, temperature=1.0,
    softcap=None,
  )  # fmt: skip
  expected = jax.nn.log_softmax(logits)[jnp.arange(5), tokens[0]]
  np.testing.assert_allclose(logp[0], expected, atol=1e-5)
  assert np.isfinite(entropy).all()
  token, _ = draw.tokens(
    logits, jax.random.split(jax.random.key(2), 5), jnp.zeros(5, int),
    jnp.array([0.0, 1.0, 9.0, 99.0, 0.0]),
  )  # fmt: skip
  assert token.max() < 64
  with pytest.raises(ValueError, match="num_ids=71"):
    dataclasses.replace(model, num_ids=71)
