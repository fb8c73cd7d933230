"""What an update computes again is chosen once in a run's life."""

import dataclasses

import learner_runs
import pytest
import small_runs
import worlds

from steppo_jax.learner import learner, memory
from steppo_jax.models import mesh
from steppo_jax.storage import checkpoint
from steppo_jax.storage import folder as run_folder


def make(devices=1, remat="auto"):
  config = dataclasses.replace(
    learner_runs.CONFIG, remat=remat, microbatch_rows=2
  )
  return learner.Learner(
    worlds.model(), learner_runs.row("grpo"), config, mesh.make_mesh(devices),
    num_updates=4, seed=0,
  )  # fmt: skip


def test_a_choice_holds_on_the_same_devices():
  made = make()
  assert made.choice is None
  made.choose_again(None)
  assert made.choice is None
  chosen = {"remat": "dots", "devices": "1 cpu"}
  made.choose_again(chosen)
  assert made.choice == chosen
  assert made.remat == "dots"
  # Two devices may have another room: they choose for themselves.
  other = make(devices=2)
  other.choose_again(chosen)
  assert other.choice is None
  # Whoever names one has it.
  named = make(remat="full")
  named.choose_again(chosen)
  assert named.choice == {"remat": "full", "devices": "1 cpu"}


@pytest.mark.slow
def test_a_resumed_run_computes_again_what_it_did_before(tmp_path, monkeypatch):
  def run(name, *rooms):
    """Runs of which each begins with so many bytes free; all but one stop."""
    made = small_runs.small_config(
      tmp_path, num_updates=2, tasks_per_update=2,
      run_dir=str(tmp_path / name),
    )  # fmt: skip
    made = dataclasses.replace(
      made, evaluation=dataclasses.replace(made.evaluation, episodes=1)
    )
    for number, free in enumerate(rooms):
      monkeypatch.setattr(memory, "free", lambda _, free=free: free)
      more = number + 1 < len(rooms)
      folder = small_runs.run(made, stop_after=1 if more else None)
    with checkpoint.Checkpoints(
      folder / run_folder.CHECKPOINTS_NAME, 1
    ) as store:
      choice = store.facts(store.latest())[0]["choice"]
    return choice["remat"], small_runs.bits(folder)

  resumed = run("resumed", 2**40, 1)
  assert resumed[0] == "none"
  assert resumed == run("whole", 2**40)
