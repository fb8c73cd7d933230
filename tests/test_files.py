"""Files that are written whole or not at all."""

import numpy as np
import pytest

from steppo_jax import files
from steppo_jax.models.formats import weights


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
  path = tmp_path / "facts.json"
  files.replace(path, "old")

  def half_a_file():
    with files.replacing(path) as new:
      new.write_text("ne")
      raise OSError("no space")

  with pytest.raises(OSError, match="no space"):
    half_a_file()
  assert path.read_text() == "old"
  # A lone surrogate cannot be written: half of the text is not the file.
  with pytest.raises(UnicodeEncodeError):
    files.replace(path, "new \ud800")
  assert path.read_text() == "old"
  assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_a_file_takes_the_name_when_it_is_whole(tmp_path):
  path = tmp_path / "facts.json"
  path.with_name("facts.json.tmp").write_text("left by a kill, and longer")
  files.replace(path, "old")
  with files.replacing(path) as new:
    assert new.parent == tmp_path
    new.write_text("new")
    assert path.read_text() == "old"
  assert path.read_text() == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
  plain, path = tmp_path / "plain", tmp_path / "weights.safetensors"
  plain.touch()
  weights.save_params(path, {"a": np.zeros(2, np.float32)}, {})
  assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
  ("cut", "text", "found"),
  [
    ("none", '{"n": 1}\n\n{"n": 2}', [1, 2]),
    ("last", '{"n": 1}\n{"n": 2}\n{"n"', [1, 2]),
    ("last", '{"n": 1}\n{"n": 2}', [1, 2]),
    ("any", '{"n": 1}\n{"n"\n{"n": 3}\n{', [1, 3]),
  ],
)
def test_lines_that_a_kill_may_have_cut_are_passed_over(
  tmp_path, cut, text, found
):
  path = tmp_path / "a.jsonl"
  path.write_text(text)
  lines = files.read_lines(path, cut=cut)
  assert [line.record["n"] for line in lines] == found


@pytest.mark.parametrize(
  ("cut", "text"), [("none", '{"n": 1}\n{"n"'), ("last", '{"n": 1}\n{"n"\n')]
)
def test_a_broken_line_that_no_kill_explains_is_named(tmp_path, cut, text):
  path = tmp_path / "a.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
    list(files.read_lines(path, cut=cut))
