"""Several processes train as one, and none is left waiting for another."""

import os
import signal
import subprocess
import sys
import time

import host_runs
import numpy as np
import pytest
import released_models

from steppo_jax import __main__ as cli
from steppo_jax import trees
from steppo_jax.models import transformer
from steppo_jax.models.formats import weights
from steppo_jax.processes import join, signals
from steppo_jax.rollout import journal
from steppo_jax.storage import metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """An experiment of four updates over 4 devices: 3 groups of 2 episodes."""
  return host_runs.write_base(tmp_path_factory.mktemp("hosts"))


# An odd number of letters is paid, so that some groups of two differ.
_PAID = """
from steppo_jax.envs.household import env
step = env.HouseholdEnv.step
env.HouseholdEnv.step = lambda self, text: step(self, text)._replace(
  reward=float(len(text) % 2)
)
"""


def params(run_dir):
  found, _ = weights.load_params(run_dir / "policy.safetensors")
  return trees.flatten(found)


def check_same(ours, theirs):
  """What a run of another number of processes must agree on."""
  one, other = params(ours), params(theirs)
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_allclose(other[name], value, atol=1e-6, err_msg=name)
  lines = [metrics.read_jsonl(run) for run in (ours, theirs)]
  for a, b in zip(*lines, strict=True):
    assert a.keys() == b.keys()
    assert a.get("eval/panel") == b.get("eval/panel")
    names = ["update", "eval/success", "eval/steps", "rollout/success",
             "rollout/response_tokens", "rollout/invalid_share",
             "policy/grad_norm", "policy/entropy"]  # fmt: skip
    for name in {*names} & a.keys():
      assert b[name] == pytest.approx(a[name], rel=1e-5), name
  assert {*names} <= lines[0][-1].keys()


def episodes(run_dir, process, update=3, round_=0):
  return sorted(
    journal.read(
      journal.path_of(run_dir / "journal", update, process, round_)
    ).trajectories
  )


@pytest.fixture(scope="module")
def alone(base):
  """The run in one process."""
  run_dir = base.parent / "alone"
  status, said = host_runs.train(base, run_dir, [4])
  assert status == [0], said
  return run_dir


@pytest.fixture(scope="module")
def uneven(base):
  """The run in two processes, one of which has two of the three groups."""
  run_dir = base.parent / "uneven"
  status, said = host_runs.train(base, run_dir, [2, 2])
  assert status == [0, 0], said
  return run_dir


@pytest.mark.slow
def test_two_uneven_processes_train_as_one(alone, uneven):
  check_same(alone, uneven)
  assert metrics.read_jsonl(uneven)[-1]["policy/sampler_gap"] < 1e-4
  # Groups do not straddle: the second of three is the other process's.
  assert episodes(alone, 0) == [f"3-{g}-{j}" for g in range(3) for j in (0, 1)]
  assert episodes(uneven, 0) == ["3-0-0", "3-0-1", "3-2-0", "3-2-1"]
  assert episodes(uneven, 1) == ["3-1-0", "3-1-1"]


@pytest.mark.slow
def test_a_second_start_meets_in_the_same_order(base, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
  options = [["learner.num_minibatches=1", "learner.critic_warmup=0"]] * 2
  for name in ("first", "second"):
    run_dir = tmp_path / name
    status, said = host_runs.train(base, run_dir, [2, 2], options=options)
    assert status == [0, 0], said
  check_same(tmp_path / "first", tmp_path / "second")


@pytest.mark.slow
def test_processes_play_further_rounds_together(base, tmp_path):
  paid = base.with_name("paid.py")
  paid.write_text(base.read_text() + _PAID)
  one_step = [
    "algorithm.name=grpo", "rollout.max_steps=1",
    "dynamic_sampling.max_rounds=3",
  ]  # fmt: skip
  runs = [tmp_path / "alone", tmp_path / "two"]
  for run_dir, devices in zip(runs, ([4], [2, 2]), strict=True):
    options = [one_step] * len(devices)
    status, said = host_runs.train(paid, run_dir, devices, options=options)
    assert status == [0] * len(devices), said
  check_same(*runs)
  counted = [
    [{k: v for k, v in line.items() if "dynamic_sampling/" in k}
     for line in metrics.read_jsonl(run)] for run in runs
  ]  # fmt: skip
  assert counted[0] == counted[1]
  assert any(line.get("dynamic_sampling/dropped") for line in counted[0])
  rounds = [line["dynamic_sampling/rounds"] for line in counted[0][1:]]
  update = rounds.index(max(rounds))
  assert max(rounds) > 1
  first, second = (episodes(runs[1], p, update, 1) for p in (0, 1))
  assert first
  assert sorted(first + second) == episodes(runs[0], 0, update, 1)


@pytest.mark.crash
def test_who_is_killed_or_stopped_stops_all_and_nothing_is_lost(
  base, uneven, tmp_path
):
  run_dir = tmp_path / "run"
  again = lambda kill: host_runs.train(base, run_dir, [2, 2], kill=kill)
  began = time.monotonic()
  status, said = again((1, "update: learned=2"))
  assert status == [signals.RESTARTABLE, -signal.SIGKILL], said
  assert "stopped by process 1, which has ended" in said[0]
  assert time.monotonic() - began < 300
  assert not (run_dir / "checkpoints").exists()
  # Updates 0 and 1 are in the journals; it is in the episodes of the third.
  status, said = again((0, "rollout: an episode=3:SIGTERM"))
  assert status == [signals.RESTARTABLE] * 2, said
  assert (run_dir / "checkpoints" / "2" / "manifest.json").is_file()
  status, said = again(None)
  assert status == [0, 0], said
  # The same topology gives the same bits.
  whole, found = params(uneven), params(run_dir)
  for name, value in whole.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.crash
def test_four_processes_train_as_one_though_one_plays_nothing(
  base, alone, tmp_path
):
  run_dir = tmp_path / "run"
  status, said = host_runs.train(base, run_dir, [1, 1, 1, 1])
  assert status == [0] * 4, said
  check_same(alone, run_dir)
  assert not episodes(run_dir, 3)


@pytest.mark.crash
def test_the_loss_of_the_first_process_stops_the_others(base, tmp_path):
  for place in ("update: packed=2", "rollout: an episode=2"):
    status, said = host_runs.train(
      base, tmp_path / "run", [2, 2], kill=(0, place)
    )
    assert status == [-signal.SIGKILL, signals.RESTARTABLE], said
    assert "stopped by process 0, which has ended" in said[1]


@pytest.mark.crash
def test_a_run_goes_on_with_another_number_of_processes(base, alone, tmp_path):
  run_dir = tmp_path / "run"
  for devices, kill in (
    ((2, 2), (1, "update: learned=2")),
    ((1, 1, 1, 1), (1, "rollout: an episode=2:SIGTERM")),
  ):
    status, said = host_runs.train(base, run_dir, devices, kill=kill)
    assert set(status) <= {signals.RESTARTABLE, -signal.SIGKILL}, said
  status, said = host_runs.train(base, run_dir, [4])
  assert status == [0], said
  check_same(alone, run_dir)


@pytest.mark.slow
def test_processes_with_other_numbers_of_devices_are_refused(base, tmp_path):
  status, said = host_runs.train(base, tmp_path / "run", [1, 2])
  assert status == [2, 2], said
  assert "the number of devices: process 1 has 2" in said[0]


@pytest.mark.slow
def test_a_supervised_run_in_two_processes_is_refused(tmp_path):
  file = host_runs.ROOT / "experiments" / "household_sft.py"
  status, said = host_runs.train(file, tmp_path / "run", [1, 1])
  assert status == [2, 2], said
  assert "a supervised run takes one process" in said[1]
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  "found", [pytest.param(False, marks=pytest.mark.crash), True]
)
def test_processes_with_other_options_are_refused(base, tmp_path, found):
  options = [["seed=1"], ["seed=2"]]
  status, said = host_runs.train(
    base, tmp_path / "run", [1, 1], options=options, found=found
  )
  assert status == [2, 2], said
  assert "the options: process 1 has" in said[0]
  assert not (tmp_path / "run").exists()


@pytest.mark.crash
def test_a_folder_of_something_else_is_refused_by_all(base, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "thesis.txt").write_text("precious")
  status, said = host_runs.train(base, tmp_path / "run", [1, 1])
  assert status == [2, 2], said
  assert all("something else" in text for text in said)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--processes", "2"], "belong together"),
    (["--coordinator", "here", "--processes", "2", "--process", "0"],
     "HOST:PORT"),
    (["--coordinator", "h:1", "--processes", "2", "--process", "2"],
     "none of 0 to 1"),
    (["--many-hosts", "--process", "2"], "by itself"),
  ],
)  # fmt: skip
def test_wrong_flags_are_refused(
  base, tmp_path, capsys, monkeypatch, flags, says
):
  # One device may wait for those of the others as well.
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.delenv("NPROC", raising=False)
  command = ["train", str(base), f"run_dir={tmp_path / 'run'}", *flags]
  with pytest.raises(SystemExit) as ended:
    sys.exit(cli.main(command))
  assert ended.value.code == 2
  assert says in capsys.readouterr().err
  assert int(os.environ["NPROC"]) >= 8


def test_a_first_process_that_is_not_there_is_named(base, tmp_path):
  place = join.Addresses(
    f"127.0.0.1:{host_runs.free_port()}", 2, 1, limit_s=1.0
  )
  with (
    pytest.raises(RuntimeError, match="no process answers"),
    signals.Handler() as handler,
  ):
    join.join(place, handler)


_SLOW_START = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from steppo_jax.models import mesh as mesh_lib
port, index = sys.argv[1:]
jax.distributed.initialize("127.0.0.1:" + port, 2, int(index))
mesh = mesh_lib.make_mesh()
mesh_lib.meet(mesh)
time.sleep(40 * int(index))  # As one that compiles.
x = mesh_lib.put(np.arange(4.0), mesh_lib.by_row(mesh, 0))
print(float(jax.jit(jnp.sum)(x)))
"""


@pytest.mark.crash
def test_processes_that_met_wait_for_one_that_compiles_longer(tmp_path):
  port = str(host_runs.free_port())
  env = os.environ | {
    "PYTHONPATH": str(host_runs.ROOT),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
  }
  command = [sys.executable, "-c", _SLOW_START, port]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
  processes = [
    subprocess.Popen([*command, index], env=env, cwd=tmp_path, **pipes)
    for index in "01"
  ]
  said = [p.communicate(timeout=200) for p in processes]
  assert [out.split()[-1:] for out, _ in said] == [["6.0"], ["6.0"]], said


@pytest.mark.slow
@pytest.mark.parametrize("own", [0, 1])
def test_processes_play_their_shares_ahead_within_the_bound(
  base, tmp_path, own
):
  """On the devices of the learner, or on one of their own in each process."""
  options = ["rollout.staleness=1", f"mesh.rollout_devices={own}"]
  devices = [2 + own] * 2
  codes, said = host_runs.train(
    base, tmp_path, devices, options=[options, options]
  )
  assert codes == [0, 0], said
  lines = metrics.read_jsonl(tmp_path)[1:]
  assert [line["rollout/episodes"] for line in lines] == [6] * 4
  assert max(line["rollout/staleness"] for line in lines) <= 1
  for update in range(4):
    shares = [
      journal.read(journal.path_of(tmp_path / "journal", update, process))
      for process in (0, 1)
    ]
    uids = [uid for share in shares for uid in share.trajectories]
    assert sorted(uids) == [
      f"{update}-{g}-{j}" for g in range(3) for j in (0, 1)
    ]
    assert [len(share.trajectories) for share in shares] == [4, 2]


@pytest.mark.slow
def test_devices_of_their_own_give_the_bits_of_shared_ones(
  base, uneven, tmp_path
):
  options = [["mesh.rollout_devices=1"]] * 2
  codes, said = host_runs.train(base, tmp_path, [3, 3], options=options)
  assert codes == [0, 0], said
  whole, found = params(uneven), params(tmp_path)
  for name, value in whole.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


_RELEASED = transformer.ModelConfig(
  vocab_size=512, width=32, num_layers=2, num_heads=2, num_kv_heads=2,
  head_dim=16, mlp_width=48,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  "split",
  ["mesh.fsdp=1", pytest.param("mesh.fsdp=2", marks=pytest.mark.crash)],
)
def test_every_process_reads_a_released_model(base, tmp_path, split):
  """The second process has none of the first process's devices to read to."""
  folder = released_models.write(tmp_path / "model", _RELEASED)
  options = [
    f"weights={folder}", "tokenizer=model", "prompt.layout=chat", split,
    "num_updates=1", "tasks_per_update=2", "rollout.max_steps=1",
    "rollout.max_tokens=1024", "rollout.max_new_tokens=8",
    "packing.row_length=1024", "sampler.prefill_lengths=512",
    "evaluation.episodes=2",
  ]  # fmt: skip
  run_dir = tmp_path / "run"
  status, said = host_runs.train(base, run_dir, [1, 1], options=[options] * 2)
  assert status == [0, 0], said
  assert metrics.read_jsonl(run_dir)[-1]["policy/sampler_gap"] < 1e-4
