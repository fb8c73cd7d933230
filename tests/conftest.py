"""Settings of the whole suite. They must be in place before JAX is imported."""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import signal
import sys
from importlib import metadata

import hypothesis
import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Helpers, which tests and the processes they start import by bare name.
_SUPPORT = _ROOT / "tests" / "support"
sys.path[:0] = [str(_SUPPORT / name) for name in ("", "envs", "models")]
_PROGRAMS = [_ROOT / "experiments" / name for name in ("chain", "analysis")]

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = [
  "--xla_force_host_platform_device_count=8",
  # Most of a cold run is compilation of programs that run for milliseconds.
  # These make an update of the learner compile in a third of the time, to two
  # thirds of the memory mappings; it runs for twice as long.
  "--xla_backend_optimization_level=0",
  "--xla_cpu_parallel_codegen_split_count=1",
]
# XLA aborts at a flag that it does not know, and releases know different ones.
_JAXLIB = int(metadata.version("jaxlib").split(".")[1])
if _JAXLIB <= 10:
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
# Eight devices share the cores of a machine that may be busy: XLA would abort
# after the 40 s that one of them may wait for another.
if _JAXLIB >= 10:
  _FLAGS.append("--xla_cpu_collective_call_terminate_timeout_seconds=300")
# A worker of pytest finds them set: twice the flags would be another cache.
_SET = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join(
  [*_SET, *(flag for flag in _FLAGS if flag not in _SET)]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

hypothesis.settings.register_profile(
  "local", deadline=None, max_examples=25, database=None
)
hypothesis.settings.register_profile(
  "ci", deadline=None, max_examples=25, database=None, derandomize=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


_THREADS = os.environ.get("NPROC")


@pytest.fixture(autouse=True)
def _own_threads():
  """A command that a test calls sets them, and what comes later inherits it."""
  yield
  if _THREADS is None:
    os.environ.pop("NPROC", None)
  else:
    os.environ["NPROC"] = _THREADS


@pytest.fixture
def ctrl_c():
  """SIGINT interrupts, also children: what a shell began with & ignores it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


# A file runs in one process: the longest are begun first, so that none is left
# for the end, when the other process has nothing more to do.
_LONGEST_FIRST = [
  "processes/test_hosts.py", "test_notebook.py", "resume/test_crash.py",
  "training/test_stops.py", "compare/test_compare.py",
  "learner/test_learner.py", "learner/test_update_transforms.py",
  "training/test_train.py", "learner/test_teacher.py",
  "models/test_families.py", "learner/test_update.py",
  "commands/test_model_commands.py", "storage/test_checkpoint_damage.py",
  "rollout/test_retries.py", "packing/test_layouts.py",
  "training/test_train_envs.py", "test_bench_peers.py",
]  # fmt: skip


def pytest_collection_modifyitems(items):
  places = {_ROOT / "tests" / x: i for i, x in enumerate(_LONGEST_FIRST)}
  gone = [str(path) for path in places if not path.is_file()]
  assert not gone, f"_LONGEST_FIRST names {gone}"
  items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_configure(config):
  # A tenth of a run is the search for cycles among what tracing makes.
  gc.set_threshold(200_000, 50, 100)
  # Two workers may write one cache entry at a time; JAX then compiles anew.
  config.addinivalue_line(
    "filterwarnings", "ignore:Error (reading|writing) persistent compilation"
  )


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
  """Folder of golden numbers and real games, which is not in the repository."""
  path = os.environ.get("STEPPO_SHARED_DIR", _ROOT.parent / "shared")
  path = pathlib.Path(path)
  if not path.is_dir():
    pytest.skip(f"no folder {path}: set STEPPO_SHARED_DIR to the shared data")
  return path


def _golden(shared_dir, name) -> dict:
  path = shared_dir / "golden" / name
  if not path.is_file():
    pytest.skip(f"no file {path}")
  return json.loads(path.read_text())


@pytest.fixture(scope="session")
def golden(shared_dir) -> dict:
  """Golden numbers by case."""
  return _golden(shared_dir, "golden.json")


@pytest.fixture(scope="session")
def neighbours(shared_dir) -> dict:
  """Golden numbers of the methods that stand beside StepPO, by case."""
  return _golden(shared_dir, "neighbours.json")


@pytest.fixture
def checkpoint_folder(tmp_path):
  """Checkpoints of updates 10, 20 and 30; see `saved_states`."""
  import saved_states

  return saved_states.make_folder(tmp_path)


@pytest.fixture
def collected():
  """What Orbax left half read is reported here, not in a later test."""
  # What was there before is not searched: that alone takes more than a second.
  gc.freeze()
  yield
  gc.collect()
  gc.unfreeze()


@pytest.fixture
def load(monkeypatch):
  """Imports an experiment the way `python experiments/chain/NAME.py` does."""
  for folder in _PROGRAMS:
    monkeypatch.syspath_prepend(str(folder))
  loaded = set(sys.modules)
  yield importlib.import_module
  own = {path.stem for folder in _PROGRAMS for path in folder.glob("*.py")}
  for name in (set(sys.modules) - loaded) & own:
    del sys.modules[name]


def _sgd(*_, **__):
  """One function for all tests: by it they know a learner they can share."""
  import optax

  return optax.sgd(0.05)


@pytest.fixture
def sgd(monkeypatch):
  """SGD in place of Adam, which divides by the gradient's own size: rounding
  is magnified where a gradient is nearly zero."""
  from steppo_jax.learner import learner, optimizers

  monkeypatch.setattr(optimizers, "adamw", _sgd)
  # A learner with these options may have been compiled with Adam, or be later.
  learner._shared.cache_clear()
  yield
  learner._shared.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go():
  """Forgets what was compiled before a process has too much of it.

  Linux ends at 65,530 mappings by default (vm.max_map_count), XLA's CPU
  programs take several each, and a process that is refused one is aborted. Two
  workers shall not need more than 6 GB either.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if "jax" not in sys.modules or not maps.exists():
    return
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  held = pages * os.sysconf("SC_PAGE_SIZE")
  if held > 2.25 * 2**30 or maps.read_bytes().count(b"\n") > 25_000:
    for name in ("learner_runs", "whole_updates"):
      if name in sys.modules:
        sys.modules[name].forget()
    if "steppo_jax.sampler.programs" in sys.modules:
      sys.modules["steppo_jax.sampler.programs"]._shared.cache_clear()
    sys.modules["jax"].clear_caches()
    gc.collect()
    # glibc keeps what was freed otherwise.
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).malloc_trim(0)
