"""The package anthropic as a client; run by `make test-standards`."""

import json
import os
import pathlib
import subprocess

import agent_calls
import pytest
import served_policies

from steppo_jax.serving import session as session_lib

pytestmark = pytest.mark.standards

PROGRAM = pathlib.Path(__file__).parent / "anthropic_client.py"
PACKAGE = "anthropic-2.14.0"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """What the client got, and the episode that became of it."""
  folder = tmp_path_factory.mktemp("served")
  tokenizer = served_policies.tokenizer(folder / "nano")
  policy = served_policies.policy(tokenizer, served_policies.engine(tokenizer))
  python = pathlib.Path(os.environ["STEPPO_STANDARDS"]) / PACKAGE
  limits = session_lib.Limits(max_new_tokens=served_policies.NEW_TOKENS)
  with served_policies.served(policy, folder / "pool", limits=limits) as url:
    made = agent_calls.make(url)
    done = subprocess.run(
      [str(python / "bin" / "python"), str(PROGRAM), made["url"],
       made["api_key"]], capture_output=True, text=True, check=False,
    )  # fmt: skip
    agent_calls.post(made, "finish", status="ended")
  policy.scheduler.close()
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout), agent_calls.recorded(made, folder / "pool")


def test_answers_are_read_whole_and_in_pieces(found):
  told, episode = found
  whole, first = told["whole"], episode.steps[0]
  assert whole["prompt_token_ids"] == first.prompt_ids.tolist()
  assert whole["token_ids"] == first.response_ids.tolist()
  assert whole["usage"]["output_tokens"] == len(first.response_ids)
  assert whole["stop_reason"] == "max_tokens"
  # The same call again, as a stream: the same answer.
  (block,) = told["streamed"]["content"]
  assert "".join(told["pieces"]) == block["text"] == whole["content"][0]["text"]
  assert told["streamed"]["id"] == whole["id"]
  before = whole["prompt_token_ids"] + whole["token_ids"]
  assert told["second"]["prompt_token_ids"][: len(before)] == before
  assert len(episode.steps) == 6


def test_tools_counts_and_faults_have_their_form(found):
  told, _ = found
  assert told["tools"]["role"] == "assistant"
  assert told["count"] > 10
  assert told["together"] == 3
  status, body = told["wrong"]
  assert (status, body["error"]["type"]) == (400, "invalid_request_error")
  assert "temperature" in body["error"]["message"]
  assert told["long"][1]["error"]["code"] == "context_length_exceeded"
  assert told["key"]["error"]["type"] == "authentication_error"
