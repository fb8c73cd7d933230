"""Runs that start from a model as it is released: folder, tokenizer, chat."""

import dataclasses

import jax
import pytest
import released_models
import small_runs

from steppo_jax.models import transformer
from steppo_jax.models.options import LoraConfig
from steppo_jax.packing.options import PackingConfig
from steppo_jax.pretrained import policy
from steppo_jax.prompts.options import PromptConfig
from steppo_jax.sampler.options import SamplerConfig
from steppo_jax.storage import metrics
from steppo_jax.tokenizer import loading
from steppo_jax.training import config, players

MODEL = transformer.ModelConfig(
  vocab_size=512, width=32, num_layers=2, num_heads=2, num_kv_heads=1,
  head_dim=16, mlp_width=48,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp("released") / "model"
  return released_models.write(made, MODEL)


def options(folder, tmp_path, **changes):
  """One update on two short episodes."""
  small = small_runs.small_config(tmp_path)
  return dataclasses.replace(
    small,
    **dict(
      weights=str(folder),
      tokenizer=loading.OWN_TOKENIZER,
      num_updates=1,
      tasks_per_update=2,
      prompt=PromptConfig(layout="chat"),
      rollout=dataclasses.replace(
        small.rollout, max_steps=2, max_tokens=1024, max_new_tokens=8
      ),
      sampler=SamplerConfig(num_slots=1, prefill_lengths=(512,)),
      packing=PackingConfig(row_length=1024),
      learner=dataclasses.replace(
        small.learner, num_minibatches=1, critic_warmup=0,
        critic_trunk="policy", lora=LoraConfig(rank=2),
      ),
      evaluation=config.EvalConfig(every=1, episodes=1),
    )
    | changes,
  )  # fmt: skip


@pytest.mark.slow
def test_a_folder_is_trained_and_its_policy_taken_up(folder, tmp_path):
  run = small_runs.run(options(folder, tmp_path))
  (line,) = [
    line
    for line in metrics.read_jsonl(run / "metrics.jsonl")
    if line["update"] == 1
  ]
  assert line["policy/sampler_gap"] < 1e-4
  assert line["policy/grad_norm"] > 0
  # The policy knows its tokenizer: the folder's, and no other.
  again = options(
    run / "policy.safetensors", tmp_path, tokenizer=str(folder)
  )  # fmt: skip
  tokenizer = policy.load_tokenizer(again.tokenizer, again.weights)
  model, params = players.load_model(again, tokenizer)
  # Rows that no id stands for are no part of the policy.
  assert tokenizer.num_ids < MODEL.vocab_size
  assert model == dataclasses.replace(MODEL, num_ids=tokenizer.num_ids)
  assert params["embed"]["embedding"].shape == (512, 32)
  other = dataclasses.replace(again, tokenizer="household")
  with pytest.raises(ValueError, match="use the weights' own tokenizer"):
    players.load_model(
      other, policy.load_tokenizer(other.tokenizer, other.weights)
    )


@pytest.mark.slow
def test_what_is_computed_in_and_again_is_an_option(folder, tmp_path):
  asked = options(folder, tmp_path, compute="bfloat16", remat="full")
  model, _ = players.load_model(
    asked, policy.load_tokenizer(asked.tokenizer, asked.weights)
  )
  assert (model.compute, model.remat) == ("bfloat16", "full")
  wrong = options(folder, tmp_path, compute="float8")
  with pytest.raises(ValueError, match="compute='float8' is none of"):
    players.load_model(
      wrong, policy.load_tokenizer(wrong.tokenizer, wrong.weights)
    )


@pytest.mark.parametrize(
  ("trained", "rank", "compute", "kind"),
  [
    (True, 0, "bfloat16", "float32"),
    (True, 2, "bfloat16", "bfloat16"),
    (True, 2, "float32", "float32"),
    (False, 0, "bfloat16", "bfloat16"),
  ],
)
def test_what_is_not_trained_stays_as_it_is_stored(
  tmp_path, trained, rank, compute, kind
):
  made = released_models.write(tmp_path / "model", MODEL, dtype="bfloat16")
  asked = options(made, tmp_path, compute=compute)
  tokenizer = policy.load_tokenizer(asked.tokenizer, asked.weights)
  _, params = players.load_model(asked, tokenizer, trained=trained and not rank)
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {kind}


def test_wrong_models_and_tokenizers_are_named(folder, tmp_path):
  small = options(folder, tmp_path, tokenizer="worlds")
  with pytest.raises(ValueError, match="knows 512 tokens, the tokenizer has"):
    players.load_model(
      small, policy.load_tokenizer(small.tokenizer, small.weights)
    )
  absent = options(tmp_path / "absent", tmp_path)
  with pytest.raises(ValueError, match=r"no model at .*absent"):
    policy.load_tokenizer(absent.tokenizer, absent.weights)
  unknown = options(folder, tmp_path, tokenizer="no-such-thing")
  with pytest.raises(ValueError, match="no tokenizer 'no-such-thing'"):
    policy.load_tokenizer(unknown.tokenizer, unknown.weights)
  run = config.SupervisedRun(tokenizer=loading.OWN_TOKENIZER)
  with pytest.raises(ValueError, match="needs weights that bring one"):
    policy.load_tokenizer(run.tokenizer, run.weights)
