"""Answers that grow: their text is that of all tokens, however they come."""

import itertools

import hypothesis
import numpy as np
import pytest
import served_policies
from hypothesis import strategies as st

from steppo_jax.prompts import chat
from steppo_jax.serving import answers, scheduler, schema
from steppo_jax.tokenizer import bytes_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return served_policies.tokenizer(tmp_path_factory.mktemp("a") / "nano")


def grown(tokenizer, ids, cuts, stops=(), *, reason="length"):
  """The answer, and the texts that were shown one after the other."""
  stop_ids = (tokenizer.end_of_turn_id,)
  answer = answers.Answer(tokenizer, stop_ids, stops)
  edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
  shown = []
  for start, end in itertools.pairwise(edges):
    last = end == len(ids)
    part = np.array(ids[start:end], np.int32)
    logp = -part.astype(np.float32)
    shown.append(
      answer.add(scheduler.Piece(part, logp, reason if last else None, 7))
    )
    if answer.finish is not None:
      break
  return answer, shown


def test_chats_are_refused_where_no_template_writes_them():
  """A tokenizer that could encode one is not enough."""
  plain = bytes_tokenizer.BytesTokenizer()
  policy = answers.Policy("m", plain, None, context=9, max_new_tokens=9)
  with pytest.raises(answers.Fault, match="use /v1/completions") as raised:
    policy.template(None)
  assert raised.value.status == 400


@pytest.mark.parametrize(
  ("given", "template"),
  [
    ({"reasoning_content": "why"}, {"content": "", "reasoning_content": "why"}),
    ({"reasoning": "why"}, {"content": "", "reasoning_content": "why"}),
    ({"reasoning_content": "", "reasoning": "why"},
     {"content": "", "reasoning_content": "why"}),
    ({"content": "a", "reasoning": {"effort": "low"}}, {"content": "a"}),
    ({"content": "a", "role": "user", "reasoning": "why"},
     {"content": "a", "role": "user"}),
    ({"refusal": "no"}, {"content": "no"}),
    ({"content": [{"type": "refusal", "refusal": "no"}]}, {"content": "no"}),
    ({"content": "a", "refusal": None, "function_call": None},
     {"content": "a"}),
  ],
)  # fmt: skip
def test_all_that_a_message_says_gets_to_the_template(given, template):
  message = schema.Message.model_validate({"role": "assistant"} | given)
  assert schema.as_template(message) == {"role": "assistant"} | template


def test_thoughts_that_a_template_refuses_are_left_out(tokenizer):
  made = chat.Chat(tokenizer, template=(
    "{% for m in messages %}{% if m.thinking and m.content %}"
    "{{ raise_exception('both') }}{% endif %}{{ m.content }}{% endfor %}"
  ))  # fmt: skip
  said = {"role": "assistant", "content": "a", "reasoning_content": "why"}
  ids = answers.prompted(made, [said]).ids
  assert tokenizer.decode(ids) == "a"
  with pytest.raises(ValueError, match="no role"):
    answers.prompted(made, [{"content": "a"}])


BYTES = st.integers(0, 255)
TEXT = st.text("ab é\ud55c\U0001f600", max_size=30)


@hypothesis.given(
  text=TEXT, noise=st.lists(BYTES, max_size=40), cuts=st.lists(BYTES)
)
def test_pieces_make_the_text_of_all_tokens(tokenizer, text, noise, cuts):
  """Bytes that are no characters included, which a policy can sample."""
  ids = [*tokenizer.encode(text).tolist(), *noise]
  answer, shown = grown(tokenizer, ids, cuts)
  assert answer.ids == ids
  assert "".join(shown) == answer.text
  whole, _ = grown(tokenizer, ids, [])
  raw = tokenizer.decode(ids)
  if not any(0xD800 <= ord(c) < 0xE000 for c in whole.text + raw):
    # Halves of a character are read by all bytes together, if at all.
    assert answer.text == whole.text == raw


@hypothesis.given(text=st.text("abc", max_size=40), cuts=st.lists(BYTES))
def test_a_stop_text_cuts_at_the_same_token_however_pieces_come(
  tokenizer, text, cuts
):
  ids = tokenizer.encode(text).tolist()
  stops = ("cab", "bb")
  answer, shown = grown(tokenizer, ids, cuts, stops)
  at = min((k for s in stops if (k := text.find(s)) >= 0), default=None)
  assert "".join(shown) == answer.text == text[:at]
  sizes = [len(tokenizer.decode(ids[:n])) for n in range(len(ids) + 1)]
  if at is not None:
    behind = min(k + len(s) for s in stops if (k := text.find(s)) >= 0)
    needed = next(n for n, size in enumerate(sizes) if size >= behind)
    assert (len(answer.ids), answer.finish) == (needed, "stop")
  assert len(answer.logp) == len(answer.ids)


class Counting:
  """A tokenizer that counts what it decodes."""

  def __init__(self, inner):
    self.inner, self.decoded = inner, 0

  def decode(self, ids):
    self.decoded += len(ids)
    return self.inner.decode(ids)


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_what_was_decoded_is_not_decoded_again(tokenizer, kind):
  """1,000 pieces of one token: linear work, not 500,000 tokens."""
  one = int(tokenizer.encode("a")[0])
  # A byte that only goes on a character, and no character begins with.
  ids = [one if kind == "text" else int(tokenizer.encode("\ud55c")[1])] * 1000
  counting = Counting(tokenizer)
  answer = answers.Answer(counting, (), ())
  for n, i in enumerate(ids):
    reason = "length" if n == 999 else None
    piece = scheduler.Piece(np.array([i]), np.zeros(1), reason, 0)
    answer.add(piece)
  assert answer.text == tokenizer.decode(ids)
  assert counting.decoded < 100 * len(ids)
