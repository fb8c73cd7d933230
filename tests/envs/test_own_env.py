"""The example of docs/environments.md, installed and played."""

import dataclasses
import pathlib
import re
import sys
import tomllib

import pytest
import worlds

from steppo_jax.prompts import base as prompting
from steppo_jax.rollout import loop
from steppo_jax.training import config, players

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "environments.md"
PROMPT = prompting.CompactPrompt(worlds.tokenizer())


def block(language):
  found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.S)
  return found[1]


@pytest.fixture
def installed(tmp_path, monkeypatch):
  """The example's module and what pip makes of its entry point."""
  (tmp_path / "guess.py").write_text(block("python"))
  groups = tomllib.loads(block("toml"))["project"]["entry-points"]
  folder = tmp_path / "guess-1.0.dist-info"
  folder.mkdir()
  (folder / "METADATA").write_text("Name: guess\nVersion: 1.0\n")
  (folder / "entry_points.txt").write_text(
    "".join(
      f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
      for group, points in groups.items()
    )
  )
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("guess", None)


def halving(highest):
  """Answers that halve what is left, from what was seen."""
  seen = {}

  class Watched(worlds.ScriptedEngine):
    def submit(self, requests):
      for r in requests:
        seen[r.session] = worlds.tokenizer().decode(r.prompt_ids)
      super().submit(requests)

  def answer(uid, turn):
    low, high = 1, highest
    for said in re.findall("Higher|Lower", seen[uid]):
      middle = (low + high) // 2
      low, high = (middle + 1, high) if said == "Higher" else (low, middle - 1)
    return str((low + high) // 2)

  return Watched(answer)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_example_of_the_documents_is_played_by_name(installed, workers):
  env = config.EnvConfig("guess", options=("highest=20",), workers=workers)
  tasks = players.make_tasks(env).panel("valid_unseen", 6)
  episodes = [loop.Episode(t.uid, t, 0, (i,)) for i, t in enumerate(tasks)]
  make_env = players.make_env(env)
  limits = dataclasses.replace(
    worlds.ROLLOUT, max_steps=5, max_live=make_env.at_once
  )
  done = loop.run(halving(20), make_env, episodes, PROMPT, limits)
  make_env.close()
  assert [t.error for t in done] == [None] * 6
  assert all(t.success for t in done)  # Five guesses are enough for 20.
  assert len({len(t.steps) for t in done}) > 1


def test_the_example_refuses_what_is_no_number(installed):
  env = config.EnvConfig("guess", invalid_penalty=0.5)
  played = players.make_env(env)()
  played.reset(players.make_tasks(env).panel("train", 1)[0], 0)
  out = played.step("a number")
  assert (out.reward, out.info["invalid"]) == (-0.5, True)


def test_the_example_has_at_most_40_lines():
  assert block("python").count("\n") <= 40
