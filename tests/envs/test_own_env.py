"""The example of docs/environments.md, installed and played."""

import dataclasses
import pathlib
import re
import sys
import tomllib

import pytest
import worlds

from steppo_jax.datasets import options as datasets_options
from steppo_jax.envs import base, experts, guides
from steppo_jax.learner import options as learner_options
from steppo_jax.packing import options as packing_options
from steppo_jax.prompts import base as prompt_base
from steppo_jax.prompts import options as prompt_options
from steppo_jax.rollout import loop
from steppo_jax.rollout import options as rollout_options
from steppo_jax.sampler import options as sampler_options
from steppo_jax.training import config, imitation, players, train

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "environments.md"
MODULES = ("guess", "guess_expert")
PROMPT = prompt_base.CompactPrompt(worlds.tokenizer())


def blocks(language):
  return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.S)


def block(language):
  return blocks(language)[0]


@pytest.fixture
def installed(tmp_path, monkeypatch):
  """The example's module and what pip makes of its entry point."""
  for name, text in zip(MODULES, blocks("python"), strict=False):
    (tmp_path / f"{name}.py").write_text(text)
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
  for name in MODULES:
    sys.modules.pop(name, None)


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


@pytest.mark.slow
def test_the_example_is_imitated_and_then_trained_by_reward(
  installed, tmp_path
):
  """As a user would: demonstrations, a warm start, then reinforcement."""
  common = {
    "tokenizer": "bytes",
    "env": config.EnvConfig("guess"),
    "prompt": prompt_options.PromptConfig(layout="official"),
    "rollout": rollout_options.RolloutConfig(
      max_steps=2, max_tokens=1024, max_new_tokens=4
    ),
    "sampler": sampler_options.SamplerConfig(
      num_slots=2, prefill_lengths=(512,)
    ),
    "packing": packing_options.PackingConfig("rows", row_length=1024),
    "evaluation": config.EvalConfig(every=9, episodes=2),
  }
  start = tmp_path / "start.safetensors"
  demonstrated = datasets_options.Demonstrations(
    split="train", sizes=("small",), num_episodes=4, seed=0, env="guess"
  )
  imitation.train(
    config.SupervisedRun(
      model="nano",
      save_weights=str(start),
      data_dir=str(tmp_path / "data"),
      demonstrations=demonstrated,
      training=learner_options.SupervisedConfig(
        warmup_steps=1, num_steps=2, rows_per_step=2
      ),
      **common,
    ),
    made_folder(tmp_path / "imitated"),
    on_update=lambda *_: None,
  )
  seen = {}
  train.train(
    config.RunConfig(
      weights=str(start),
      num_updates=1,
      tasks_per_update=2,
      num_devices=1,
      learner=learner_options.LearnerConfig(
        num_minibatches=1, microbatch_rows=2, critic_warmup=0
      ),
      **common,
    ),
    made_folder(tmp_path / "trained"),
    on_update=lambda update, found: seen.update({update: found}),
    on_episode=lambda _: None,
  )
  assert seen[1]["policy/grad_norm"] >= 0
  text = (tmp_path / "imitated" / "metrics.jsonl").read_text()
  assert "supervised/loss" in text


def made_folder(path):
  path.mkdir()
  return path


def test_what_prompts_tell_of_the_example_is_its_own_guide(installed):
  assert "You guess a number" in guides.get("guess").part
  found = experts.get("guess")
  task = found.worlds.generate(3, split="train", size="small")
  actions = found.plan(task)
  played = experts.play(task, base.make("guess"), actions, wins=True)
  assert played.rewards[-1] == 1.0


@pytest.mark.parametrize("field", ["expert", "guide"])
def test_a_row_that_names_no_expert_or_guide_is_refused(installed, field):
  import guess

  wrong = guess.ROW._replace(**{field: "guess:GuessEnv"})
  get = {"expert": experts.get, "guide": guides.get}[field]
  guess.ROW = wrong
  with pytest.raises(ValueError, match=rf"the {field} guess:GuessEnv of guess"):
    get("guess")
