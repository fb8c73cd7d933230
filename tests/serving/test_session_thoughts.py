"""A session marks the thoughts of an answer as its calls were read."""

import numpy as np
import pytest
import served_policies
import vocabularies

from steppo_jax import types
from steppo_jax.prompts import options, sections, tool_dialects
from steppo_jax.rollout import pool
from steppo_jax.serving import answers, scheduler, schema, session_schema, turns
from steppo_jax.serving import session as session_lib
from steppo_jax.tokenizer import bytes_tokenizer

LOOK = schema.Tool(
  function={"name": "look", "parameters": {"properties": {"at": {}}}}
)
# Marks that are part of an argument, and a thought before a call.
CALL = '<tool_call>{"name": "look", "arguments": {"at": "%s"}}</tool_call>'
OPENS, CLOSES = CALL % "use a <think> mark", CALL % "a </think> b"
THOUGHT = "<think>look, or not?</think>"
ANSWERS = [(OPENS, ""), (CLOSES, ""), (THOUGHT + OPENS, THOUGHT),
           (THOUGHT + CLOSES, THOUGHT)]  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  folder = tmp_path_factory.mktemp("thoughts") / "nano"
  tokenizer = served_policies.tokenizer(folder, vocabularies.CHATML)
  return answers.Policy(
    "nano", tokenizer, None, context=9999, max_new_tokens=99
  )


def recorded(policy, text, tools):
  """The step of a session whose only answer is a text."""
  made = turns.Turns(policy)
  plan = made.plan([schema.Message(role="user", content="go")], tools)
  answer = answers.Answer(policy.tokenizer, plan.stop_ids, ())
  turn = turns.Turn(
    0, plan, turns.Settings(None, None, None),
    types.Request("", plan.ids, (0,), 9, 1.0), answer, tools, delivered=True,
  )  # fmt: skip
  made.begin(turn)
  ids = np.append(policy.tokenizer.encode(text), plan.stop_ids[0])
  logp = np.zeros(len(ids), np.float32)
  answer.add(scheduler.Piece(ids, logp, "stop", 0))
  made.ended(turn)
  ticket = pool.Ticket(
    "u", "g", types.Task("t", "e", "f", {}), (0,), 0, "train", 1
  )
  session = session_lib.Session(ticket, "me", made, 0.0, 0.0, 0.0)
  form = session_schema.Finish(status="terminated", reward=1.0)
  [step] = session.record(policy, form).steps
  return step, turn


@pytest.mark.parametrize("tools", [[LOOK], None], ids=["tools", "none"])
@pytest.mark.parametrize(("text", "thought"), ANSWERS)
def test_a_mark_in_an_argument_makes_no_thought_of_a_call(
  policy, text, thought, tools
):
  step, turn = recorded(policy, text, tools)
  shown = policy.tokenizer.decode(step.response_ids[step.reasoning_mask])
  assert shown == thought
  # The call itself is there, mark and all.
  if tools:
    [call] = turn.called
    assert "think>" in call.arguments["at"]


@pytest.mark.parametrize(("text", "thought"), ANSWERS)
def test_prompts_and_sessions_mark_the_same_tokens(policy, text, thought):
  made = sections.make(
    options.PromptConfig(layout="prefix_friendly", answer="tool_call"),
    bytes_tokenizer.BytesTokenizer(), "household",
  )  # fmt: skip
  ids = made.tokenizer.encode(text)
  assert made.tokenizer.decode(ids[made.reasoning(ids)]) == thought
  step, _ = recorded(policy, text, [LOOK])
  assert step.reasoning_mask.sum() == len(policy.tokenizer.encode(thought))
  reading = answers.reading(policy, [LOOK], opened=False)
  assert isinstance(reading, tool_dialects.Reading)
  assert [call.name for call in reading.calls(text)] == ["look"]
