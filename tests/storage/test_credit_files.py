"""Files of credit: whole, checked, and refused if they are something else."""

import contextlib
import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from steppo_jax.storage import credit


@st.composite
def credits(draw):
  """Files of any sizes, with episodes and steps that hold nothing."""
  steps_of = draw(st.lists(st.integers(0, 3), max_size=4))
  tokens_of = draw(
    st.lists(st.integers(0, 4), min_size=sum(steps_of), max_size=sum(steps_of))
  )
  offsets = lambda counts: np.cumsum([0, *counts]).astype(np.int64)
  numbers = lambda n: arrays.arrays(
    np.float32, n, elements=st.floats(width=32, allow_infinity=False)
  )
  uids = draw(
    st.lists(
      st.text("abc-0123é ", min_size=1).map(str.strip).filter(bool),
      min_size=len(steps_of), max_size=len(steps_of), unique=True,
    )
  )  # fmt: skip
  return credit.Credit(
    update=draw(st.integers(0, 10**6)),
    checkpoint_update=draw(st.integers(0, 10**6)),
    algorithm=draw(st.sampled_from(["steppo", "grpo"])),
    episodes=tuple(uids),
    first_step=offsets(steps_of),
    first_token=offsets(tokens_of),
    **{name: draw(numbers(len(tokens_of))) for name in credit.OF_STEPS},
    **{name: draw(numbers(sum(tokens_of))) for name in credit.OF_TOKENS},
  )


def _assert_same(a, b):
  for field in dataclasses.fields(a):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)
    else:
      assert x == y


def _made(**changes):
  zeros = lambda n: np.zeros(n, np.float32)
  made = credit.Credit(
    update=4, checkpoint_update=3, algorithm="steppo", episodes=("a", "b"),
    first_step=np.array([0, 2, 3]), first_token=np.array([0, 1, 1, 4]),
    **{name: zeros(3) for name in credit.OF_STEPS},
    **{name: zeros(4) for name in credit.OF_TOKENS},
  )  # fmt: skip
  return dataclasses.replace(made, **changes)


@given(credits())
def test_what_is_read_is_what_was_written(tmp_path_factory, made):
  path = credit.path_of(tmp_path_factory.mktemp("run"), made.update)
  credit.write(path, made)
  _assert_same(credit.read(path), made)
  assert [p.name for p in path.parent.iterdir()] == [f"{made.update:06d}.npz"]
  assert credit.updates_of(path.parents[1]) == [made.update]


@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path_factory, data):
  """A bit that is flipped, or an end that is missing, is never a number."""
  path = tmp_path_factory.mktemp("run") / "000004.npz"
  made = _made()
  credit.write(path, made)
  whole = path.read_bytes()
  if data.draw(st.booleans()):
    broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
  else:
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    broken = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
  path.write_bytes(broken)
  with contextlib.suppress(ValueError):
    _assert_same(credit.read(path), made)


def _one_array(path: pathlib.Path) -> None:
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))


def _pickled(path: pathlib.Path) -> None:
  with open(path, "wb") as file:
    np.save(file, np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
  ("write", "told"),
  [
    (lambda path: path.write_bytes(b""), "damaged"),
    (lambda path: path.write_text("not an archive"), "damaged"),
    (_one_array, "one array"),
    (_pickled, "damaged"),
    (lambda path: np.savez(path, a=np.zeros(2)), "it lacks advantage"),
  ],
  ids=["empty", "text", "array", "pickle", "foreign"],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, write, told):
  path = tmp_path / "000001.npz"
  write(path)
  with pytest.raises(ValueError, match=told) as error:
    credit.read(path)
  assert str(path) in str(error.value)


def test_a_missing_file_says_how_it_is_made(tmp_path):
  with pytest.raises(ValueError, match="steppo_jax credit RUN --update"):
    credit.read(tmp_path / "000001.npz")


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"first_step": np.array([0, 2])}, r"first_step is int64\(2,\)"),
    ({"first_step": np.array([0, 3, 2])}, "never fall"),
    ({"first_step": np.array([1, 2, 3])}, "begin at 0"),
    ({"first_token": np.array([0.0, 1, 1, 4])}, "first_token is float64"),
    ({"value": np.zeros(2, np.float32)}, "value is float32"),
    ({"logp": np.zeros(4)}, "logp is float64"),
    ({"episodes": ("a", "a")}, "twice"),
    ({"update": -1}, "update=-1"),
  ],
  ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_arrays_that_do_not_fit_are_refused(changes, told):
  with pytest.raises(ValueError, match=told):
    _made(**changes)


def test_steps_are_found_by_the_name_of_their_episode():
  assert _made().steps_of("b") == slice(2, 3)
  with pytest.raises(ValueError, match="did not train on episode c"):
    _made().steps_of("c")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
  path = tmp_path / "credit" / "000004.npz"
  credit.write(path, _made())
  blocked = tmp_path / "file"
  blocked.write_text("")
  with pytest.raises(RuntimeError, match="cannot write"):
    credit.write(blocked / "credit" / "000004.npz", _made())
  _assert_same(credit.read(path), _made())
