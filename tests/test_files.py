"""Files that are written whole or not at all."""

import pytest

from steppo_jax import files


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
