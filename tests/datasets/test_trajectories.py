"""Recorded trajectories come back bit by bit and can be trained on."""

import json

import jax
import numpy as np
import pytest
import records
import worlds

from steppo_jax.datasets import trajectories as lib
from steppo_jax.packing import checks, options
from steppo_jax.packing import rows as packing
from steppo_jax.rollout import counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  output = tmp_path_factory.mktemp("data")
  return lib.write(
    output, "played", {"train": records.episodes()}, worlds.tokenizer()
  )


def test_trajectories_come_back_bit_by_bit(folder):
  found, want = lib.load(folder, "train"), records.episodes()
  assert len(found) == len(want)
  for one, other in zip(found, want, strict=True):
    assert records.plain(one) == records.plain(other)
  assert counts.summary(found) == counts.summary(want)


def test_the_old_name_of_the_log_probs_is_read_still(monkeypatch, tmp_path):
  was_step = lib._step

  def old_step(step, tokenizer):
    made = was_step(step, tokenizer)
    record = json.loads(made["record"])
    record["rollout_logprobs"] = record.pop("behaviour_logp")
    return made | {"record": json.dumps(record)}

  monkeypatch.setattr(lib, "_step", old_step)
  played = records.episodes()[:2]
  old = lib.write(tmp_path, "old", {"train": played}, worlds.tokenizer())
  found = lib.load(old, "train")
  assert [records.plain(one) for one in found] == [
    records.plain(one) for one in played
  ]


def test_what_was_read_back_is_trained_on_as_what_was_played(folder):
  rows = options.PackingConfig(row_length=worlds.CONTEXT)
  batches = []
  for source in (lib.load(folder, "train"), records.episodes()):
    usable = [t for t in source if t.error is None]
    checks.validate(usable)
    batches.append(
      packing.pack(
        usable, [0] * len(usable), rows,
        num_parts=1, rows_multiple=1, pad_id=0,
      )
    )  # fmt: skip
  arrays = [jax.tree.leaves(b._replace(trajectories=())) for b in batches]
  for one, other in zip(*arrays, strict=True):
    np.testing.assert_array_equal(one, other)


def test_episodes_have_the_form_of_rlds(folder):
  raw = lib.store.read(folder, "train", lambda one: one)
  for episode, want in zip(raw, records.episodes(), strict=True):
    steps = list(episode["steps"])
    ends = [bool(s["is_last"]) for s in steps]
    assert ends == [False] * len(want.steps) + [True]
    assert [bool(s["is_first"]) for s in steps] == [
      k == 0 for k in range(len(steps))
    ]
    over = bool(want.steps) and want.steps[-1].terminated
    assert [bool(s["is_terminal"]) for s in steps] == [
      over and last for last in ends
    ]
    assert [float(s["reward"]) for s in steps] == [
      *(float(np.float32(s.reward)) for s in want.steps), 0.0,
    ]  # fmt: skip
    assert steps[-1]["action"] == b""
    if want.steps:
      assert want.task.payload["task"] in steps[0]["observation"].decode()
    assert json.loads(episode["task"])["uid"] == want.task.uid


def test_names_tokenizers_and_kinds_are_checked(folder, tmp_path):
  with pytest.raises(ValueError, match="exists: choose another name"):
    lib.write(folder.parents[2], "played", {}, worlds.tokenizer())
  for name in ("", "../x", ".hidden", "a b"):
    with pytest.raises(ValueError, match="must be letters"):
      lib.check_new(tmp_path, name)
  assert lib.load(folder, "train", tokenizer=worlds.tokenizer().digest)
  with pytest.raises(ValueError, match="mean nothing to another"):
    lib.load(folder, "train", tokenizer="0" * 64)
  with pytest.raises(ValueError, match="a split is empty"):
    lib.write(tmp_path, "x", {"train": []}, worlds.tokenizer())
  (tmp_path / "facts.json").write_text('{"env": "webshop"}')
  with pytest.raises(ValueError, match="not one of trajectories"):
    lib.load(tmp_path, "train")


def test_a_flipped_byte_is_told(tmp_path):
  folder = lib.write(
    tmp_path,
    "x",
    {"a": records.episodes(), "b": records.episodes()[:2]},
    worlds.tokenizer(),
  )
  assert len(lib.load(folder, "b")) == 2
  (path,) = folder.glob("*-a.array_record-*")
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(RuntimeError, match=path.name):
    lib.load(folder, "a")
