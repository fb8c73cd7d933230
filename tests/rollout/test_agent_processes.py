"""Agents as processes: what they are given, what they print, how they end."""

import json
import os
import sys

import pytest

from steppo_jax.rollout import agents
from steppo_jax.rollout.options import AgentConfig


def ran(tmp_path, code, *, variables=(), text="", on_line=None, **options):
  """Runs a program; what went wrong, and the lines that it wrote."""
  (tmp_path / "agent.py").write_text(code)
  options = {
    "command": f"{sys.executable} -S {tmp_path / 'agent.py'}"
  } | options
  lines = []
  made = agents.Agents(AgentConfig(**({"seconds": 20.0} | options)))
  fault = made.run(dict(variables), text, on_line or lines.append)
  return fault, lines


SAYS = """
import json, os, sys

task = os.environ.get("STEPPO_TASK")
read = sys.stdin.read()
print(json.dumps({"variable": task and len(task), "read": len(read)}))
"""


@pytest.mark.parametrize(
  ("size", "variable"),
  [
    # "STEPPO_TASK=" and an end are 13 of the 131,072 bytes that Linux takes.
    (131_059, 131_059),
    (131_060, None),
    (3_000_000, None),
  ],
)
def test_a_task_too_long_for_a_variable_is_read_all_the_same(
  tmp_path, monkeypatch, size, variable
):
  monkeypatch.setenv("STEPPO_TASK", "of whoever started the run")
  task = "x" * size
  given = {"STEPPO_TASK": task}
  fault, lines = ran(tmp_path, SAYS, variables=given, text=task)
  assert fault is None
  assert lines == [{"variable": variable, "read": size}]


ENTRY = """
def play(task, seed):
  print(len(task.payload["text"]))
  return {"seed": seed}
"""


def test_a_callable_reads_a_task_too_long_for_a_variable(tmp_path, monkeypatch):
  (tmp_path / "my_entry_of_long_tasks.py").write_text(ENTRY)
  paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
  payload = {"text": "x" * 200_000}
  task = json.dumps(
    {"uid": "t", "env": "e", "family": "f", "payload": payload,
     "golden_steps": None}
  )  # fmt: skip
  given = {"STEPPO_TASK": task, "STEPPO_SEED": "7"}
  fault, lines = ran(
    tmp_path, "", variables=given, text=task,
    command="", entry="my_entry_of_long_tasks:play",
  )  # fmt: skip
  assert (fault, lines) == (None, [{"status": "ended", "seed": 7}])


def test_an_agent_may_print_much_before_it_reads_much(tmp_path):
  """Neither side of two full pipes waits for the other."""
  code = "print('x' * 300_000)\nprint('y' * 300_000)" + SAYS
  fault, lines = ran(tmp_path, code, text="x" * 300_000)
  assert fault is None
  assert lines == [{"variable": None, "read": 300_000}]


def test_an_agent_need_not_read(tmp_path):
  code = "import os, time; os.close(0); time.sleep(0.1); print('{}')"
  assert ran(tmp_path, code, text="x" * 300_000) == (None, [{}])
  assert ran(tmp_path, "print('{}')", text="x" * 300_000) == (None, [{}])


@pytest.mark.parametrize(
  ("written", "told"),
  [
    ("'{\"reward\": ' + '[' * 100_000", "recursion"),
    ("'{\"reward\": 1' + '0' * 5_000 + '}'", "digits"),
    ("'{\"notes\": \"' + 'x' * (1 << 20) + '\"}'", "more than 1048576 bytes"),
  ],
)
def test_a_line_that_cannot_be_read_is_a_failure_of_its_agent(
  tmp_path, written, told
):
  code = f"import time\nprint({written}, flush=True)\ntime.sleep(60)"
  fault, lines = ran(tmp_path, code)
  assert fault.startswith("AgentOutput: ")
  assert told in fault
  assert lines == []


def test_what_is_no_object_of_json_is_passed_over(tmp_path):
  """Also where a piece of a long line would be one by itself."""
  written = (
    "'plain'", "'{}x'", "\"{'step': 0}\"", "'[' * 100_000", "'\\xff{}'", "''",
    "'x' * (1 << 20) + '{}'", "'[1]'", "'1' * 9_999", "'{\"a\": 1}'",
  )  # fmt: skip
  code = "import sys\nsys.stdout.reconfigure(encoding='latin-1')\n"
  fault, lines = ran(tmp_path, code + "".join(f"print({w})\n" for w in written))
  assert (fault, lines) == (None, [{"a": 1}])


def test_what_a_line_is_refused_for_is_told(tmp_path):
  def refuse(line):
    raise ValueError(f"not {line}")

  fault, _ = ran(tmp_path, "print('{\"a\": 1}')", on_line=refuse)
  assert fault == "AgentOutput: not {'a': 1}"


def test_memory_is_bounded_from_the_start(tmp_path):
  code = "bytearray(150 << 20)\nprint('{}')"
  assert ran(tmp_path, code, memory_mb=4096) == (None, [{}])
  fault, lines = ran(tmp_path, code, memory_mb=100)
  assert (fault, lines) == ("AgentExit: status 1 MemoryError", [])


@pytest.mark.parametrize("memory_mb", [None, 4096])
def test_a_command_that_is_not_there_is_told(tmp_path, memory_mb):
  missing = tmp_path / "none"
  fault, _ = ran(tmp_path, "", command=f"{missing} x", memory_mb=memory_mb)
  assert fault == f"AgentStart: {missing}: No such file or directory"
