"""Trajectories as Parquet and JSON lines, and the traps of dataset files."""

import dataclasses
import functools
import json
import math
import sys

import hypothesis
import numpy as np
import pytest
import records
import worlds
from array_record.python import array_record_module
from hypothesis import strategies as st

from steppo_jax import types
from steppo_jax.datasets import store, tables
from steppo_jax.datasets import trajectories as lib

FORMS = tables.FORMATS


@functools.cache
def played():
  return records.episodes()


@pytest.fixture(scope="module", params=lib.FORMATS[:-1])
def folder(request, tmp_path_factory):
  return lib.write(
    tmp_path_factory.mktemp("data"), "played",
    {"train": played(), "valid_seen": played()[:2]},
    worlds.tokenizer(), request.param,
  )  # fmt: skip


def test_trajectories_come_back_bit_by_bit_from_every_format(folder):
  digest = worlds.tokenizer().digest
  found = lib.load(folder, "train", tokenizer=digest)
  assert len(found) == len(played())
  for one, other in zip(found, played(), strict=True):
    assert records.plain(one) == records.plain(other)
  assert len(lib.load(folder, "valid_seen")) == 2
  with pytest.raises(ValueError, match="has no split 'test'"):
    lib.load(folder, "test")
  with pytest.raises(ValueError, match="mean nothing to another"):
    lib.load(folder, "train", tokenizer="0" * 64)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.data())
@pytest.mark.parametrize("form", FORMS)
def test_every_number_comes_back(form, tmp_path_factory, data):
  length = data.draw(st.integers(0, 5))
  of = lambda elements: data.draw(
    st.lists(elements, min_size=length, max_size=length)
  )
  ids = st.integers(0, worlds.tokenizer().vocab_size - 1)
  step = dataclasses.replace(
    played()[0].steps[0],
    response_ids=np.array(of(ids), np.int32),
    response_mask=np.array(of(st.booleans()), bool),
    behaviour_logp=np.array(of(FLOATS | st.just(-0.0)), np.float32),
    reasoning_mask=data.draw(
      st.sampled_from([None, np.zeros(length, bool)])
    ),
    reward=data.draw(st.floats(allow_nan=False, allow_infinity=False)),
    anchor_obs=data.draw(st.text(st.characters(codec="utf-8"))),
    metadata={"n": data.draw(st.floats() | st.text() | st.booleans())},
  )  # fmt: skip
  one = dataclasses.replace(
    played()[0], steps=(step,), final_prompt_ids=np.arange(length, dtype="i4")
  )
  hypothesis.assume(step.metadata["n"] == step.metadata["n"])
  made = lib.write(
    tmp_path_factory.mktemp("x"), "x", {"a": [one]}, worlds.tokenizer(), form
  )
  (found,) = lib.load(made, "a")
  assert records.plain(found) == records.plain(one)
  signs = lambda t: [math.copysign(1, x) for x in t.steps[0].behaviour_logp]
  assert signs(found) == signs(one)


def test_columns_have_one_type_and_prompts_are_text(tmp_path):
  made = lib.write(
    tmp_path, "x", {"train": played()}, worlds.tokenizer(), "parquet"
  )
  parquet = pytest.importorskip("pyarrow.parquet")
  schema = parquet.read_schema(made / "train.parquet")
  step = schema.field("steps").type.value_type
  assert str(step.field("behaviour_logp").type.value_type) == "float"
  assert str(step.field("prompt_ids").type.value_type) == "int32"
  assert str(step.field("reward").type) == "double"
  row = tables.rows_of(made / "train.parquet")[0]
  assert played()[0].task.payload["task"] in row["steps"][0]["prompt"]
  card = (made / "README.md").read_text()
  assert "  - split: train\n    path: train.parquet\n" in card


def test_what_another_tool_has_written_is_read(tmp_path):
  # Wider numbers, columns in another order, one more and some less.
  made = lib.write(
    tmp_path, "x", {"train": played()[:3]}, worlds.tokenizer(), "jsonl"
  )
  path = tmp_path / "other.jsonl"
  with open(path, "w") as file:
    for row in tables.rows_of(made / "train.jsonl"):
      row = dict(reversed(row.items())) | {"index": 1}
      del row["retried"], row["scores"], row["error"]
      for step in row["steps"]:
        step["response_ids"] = [float(x) for x in step["response_ids"]]
        del step["metadata"]
      file.write(json.dumps(row, ensure_ascii=False) + "\n\n")
  for one, other in zip(tables.load_file(path), played()[:3], strict=True):
    steps = tuple(
      dataclasses.replace(step, metadata={}) for step in other.steps
    )
    want = dataclasses.replace(other, steps=steps, scores={})
    assert records.plain(one) == records.plain(want)
  path.write_text('{"uid": "u", "steps": []}\n')
  with pytest.raises(ValueError, match="episode u has no column 'task'"):
    tables.load_file(path)[0]
  with pytest.raises(ValueError, match=r"neither \.parquet nor \.jsonl"):
    tables.load_file(tmp_path / "x.csv")


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_that_was_not_finished_is_not_there(
  form, tmp_path, monkeypatch
):
  wrote = tables._step

  def breaks(step, tokenizer):
    if step.trajectory_uid == "won":
      raise KeyboardInterrupt
    return wrote(step, tokenizer)

  monkeypatch.setattr(tables, "_step", breaks)
  data = {"train": played()}
  with pytest.raises(KeyboardInterrupt):
    lib.write(tmp_path, "x", data, worlds.tokenizer(), form)
  assert not (tmp_path / "x").exists()
  monkeypatch.undo()
  made = lib.write(tmp_path, "x", data, worlds.tokenizer(), form)
  assert len(lib.load(made, "train")) == len(played())
  assert [p.name for p in tmp_path.iterdir()] == ["x"]
  with pytest.raises(ValueError, match="exists: choose another name"):
    lib.write(tmp_path, "x", data, worlds.tokenizer(), form)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_did_not_arrive_are_missed(form, tmp_path, monkeypatch):
  name = {"parquet": "_write_parquet", "jsonl": "_write_lines"}[form]
  wrote = getattr(tables, name)
  monkeypatch.setattr(
    tables, name, lambda path, rows: wrote(path, list(rows)[1:])
  )
  if form == "parquet":
    monkeypatch.setattr(
      tables, name, lambda path, rows: wrote(path, iter(list(rows)[1:]))
    )
  with pytest.raises(RuntimeError, match=r"holds 2 of 3 episodes"):
    lib.write(tmp_path, "x", {"a": played()[:3]}, worlds.tokenizer(), form)
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_or_changed_is_told(form, tmp_path):
  made = lib.write(tmp_path, "x", {"a": played()}, worlds.tokenizer(), form)
  path = made / f"a.{form}"
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(RuntimeError, match=path.name):
    lib.load(made, "a")
  with pytest.raises(RuntimeError, match="is broken"):
    list(tables.load_file(path))


def test_what_a_format_cannot_hold_is_refused(tmp_path, monkeypatch):
  nan = dataclasses.replace(played()[0].steps[0], reward=float("nan"))
  one = dataclasses.replace(played()[0], steps=(nan,))
  with pytest.raises(ValueError, match="holds a number that JSON has not"):
    lib.write(tmp_path, "x", {"a": [one]}, worlds.tokenizer(), "jsonl")
  lone = dataclasses.replace(played()[0], uid="\ud800")
  with pytest.raises(ValueError, match="do not fit"):
    lib.write(tmp_path, "x", {"a": [lone]}, worlds.tokenizer(), "parquet")
  with pytest.raises(ValueError, match="a split is empty"):
    lib.write(tmp_path, "x", {"a": []}, worlds.tokenizer(), "parquet")
  with pytest.raises(ValueError, match="format 'csv' is none of tfds, parquet"):
    lib.write(tmp_path, "x", {"a": [one]}, worlds.tokenizer(), "csv")
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(RuntimeError, match=r"'steppo_jax\[parquet\]'"):
    lib.write(tmp_path, "x", {"a": [one]}, worlds.tokenizer(), "parquet")


def test_an_array_record_that_was_not_closed_is_told(tmp_path):
  made = lib.write(tmp_path, "x", {"a": played()}, worlds.tokenizer())
  (path,) = made.glob("*-a.array_record-*")
  whole = array_record_module.ArrayRecordReader(str(path))
  few = whole.read([0, 1])
  whole.close()
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in few:
    writer.write(record)
  # The trap itself: what was written is nowhere, without a word.
  assert array_record_module.ArrayRecordReader(str(path)).num_records() == 0
  # Checksums that were taken of such a file do not help.
  store.seal(made)
  with pytest.raises(RuntimeError, match=f"a holds 0 of {len(played())}"):
    lib.load(made, "a")
  writer.close()
  store.seal(made)
  with pytest.raises(RuntimeError, match=f"a holds 2 of {len(played())}"):
    lib.load(made, "a")


def test_steps_of_tfds_are_lazy_and_texts_are_bytes(tmp_path):
  # Who reads the files without `load` meets both.
  made = lib.write(tmp_path, "x", {"a": played()[:1]}, worlds.tokenizer())
  (raw,) = store.read(made, "a", dict)
  assert not isinstance(raw["steps"], list | tuple | dict)
  first = [dict(step) for step in raw["steps"]]
  again = [dict(step) for step in raw["steps"]]
  assert len(first) == len(again) == len(played()[0].steps) + 1
  assert isinstance(first[0]["observation"], bytes)
  assert isinstance(raw["success"], bool | np.bool_)
  (found,) = lib.load(made, "a")
  assert isinstance(found.uid, str)
  assert isinstance(found.success, bool)
  assert isinstance(found, types.Trajectory)


def test_atif_tells_prompts_answers_and_what_came_of_them(tmp_path):
  made = lib.write(tmp_path, "x", {"a": played()}, worlds.tokenizer(), "atif")
  files = sorted((made / "a").iterdir())
  assert len(files) == len(played())
  decode = worlds.tokenizer().decode
  for path, want in zip(files, played(), strict=True):
    found = json.loads(path.read_text())
    user, *answers = found["steps"]
    assert [s["step_id"] for s in found["steps"]] == [
      n + 1 for n in range(len(want.steps) + 1)
    ]
    assert user["source"] == "user"
    assert found["extra"]["success"] == want.success
    assert found["extra"]["reward"] == want.total_reward
    assert types.task_from_json(found["extra"]["task"]) == want.task
    shown = user["message"]
    for answer, step in zip(answers, want.steps, strict=True):
      # Told piece by piece, the prompts are those that were read.
      assert shown == decode(step.prompt_ids)
      of = answer["metrics"]
      assert of["prompt_token_ids"] == step.prompt_ids.tolist()
      assert of["completion_token_ids"] == step.response_ids.tolist()
      logp = np.array(of["logprobs"], np.float32)
      assert logp.tobytes() == step.behaviour_logp.tobytes()
      assert of["extra"]["reward"] == step.reward
      thoughts = of["extra"]["reasoning_mask"]
      if step.reasoning_mask is None:
        assert thoughts is None
      else:
        assert thoughts == step.reasoning_mask.tolist()
      results = answer.get("observation", {"results": [{"content": ""}]})
      shown += answer["message"] + results["results"][0]["content"]
    assert ("observation" in answers[-1] if answers else False) == (
      want.final_prompt_ids is not None
    )
  with pytest.raises(ValueError, match="is not a prepared dataset"):
    lib.load(made, "a")
  with pytest.raises(ValueError, match="exists: choose another"):
    lib.write(tmp_path, "x", {"a": played()}, worlds.tokenizer(), "atif")
