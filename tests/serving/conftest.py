"""The policy that the tests of servers and sessions ask."""

import pytest
import served_policies


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  tokenizer = served_policies.tokenizer(tmp_path_factory.mktemp("t") / "nano")
  made = served_policies.policy(tokenizer, served_policies.engine(tokenizer))
  yield made
  made.scheduler.close()
