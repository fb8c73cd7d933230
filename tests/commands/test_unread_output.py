"""Output that nobody reads any more (`| head`) ends a command quietly."""

import os
import subprocess
import sys

import pytest
import rich.console
from marks import some

from steppo_jax import __main__ as cli
from steppo_jax.commands import terminal

COMMANDS = [
  name for action in cli._parser()._actions for name in (action.choices or ())
]


@pytest.fixture
def unread():
  """The end of a pipe that is written to; nobody holds the other."""
  reader, writer = os.pipe()
  os.close(reader)
  yield writer
  os.close(writer)


def run(*argv, **streams):
  return subprocess.run(
    [sys.executable, "-m", "steppo_jax", *argv], text=True, check=False,
    **streams,
  )  # fmt: skip


@pytest.mark.parametrize(
  "command", some("algorithms", slow=["experiments", "evaluate --help"])
)
def test_a_program_whose_reader_has_left_says_nothing(command, unread):
  done = run(*command.split(), stdout=unread, stderr=subprocess.PIPE)
  assert (done.returncode, done.stderr) == (141, "")


def test_what_is_read_arrives_whole():
  done = run("algorithms", "steppo", stdout=subprocess.PIPE)
  assert done.returncode == 0
  assert "steppo" in done.stdout


def test_a_mistake_keeps_its_status_and_message(unread):
  done = run("inspect", "gone", stdout=unread, stderr=subprocess.PIPE)
  assert done.returncode == 2
  assert "no model at gone" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_so(command, unread, monkeypatch):
  with os.fdopen(os.dup(unread), "w") as stream:
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stop:
      cli.main([command, "--help"])
  assert stop.value.code == terminal.UNREAD == 141


@pytest.mark.parametrize("stderr", [False, True], ids=["stdout", "stderr"])
def test_a_console_ends_so_too(stderr, unread, monkeypatch):
  with (
    os.fdopen(os.dup(unread), "w") as stream,
    open(os.devnull, "w") as nowhere,
  ):
    # rich redirects stdout, which is pytest's otherwise.
    monkeypatch.setattr(sys, "stdout", nowhere)
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", stream)
    with pytest.raises(SystemExit) as stop, terminal.while_read():
      rich.console.Console(stderr=stderr).print("told")
  assert stop.value.code == terminal.UNREAD


def test_a_pipe_to_something_else_is_not_hidden():
  with (
    pytest.raises(BrokenPipeError, match="a worker"),
    terminal.while_read(),
  ):
    raise BrokenPipeError("a worker")
