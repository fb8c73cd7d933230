"""Cosines between batches, and the gradients that they are taken of."""

import json
import pathlib

import numpy as np
import pytest

EXPERIMENT = (
  pathlib.Path(__file__).parents[1] / "experiments" / "household_steppo.py"
)


def test_the_cosine_is_the_share_of_the_signal(load):
  noise = load("gradient_noise")
  random = np.random.default_rng(0)
  signal = random.normal(size=4000)
  batches = signal + 2 * random.normal(size=(16, 4000))
  found, spread = noise.cosines(batches)
  assert found == pytest.approx(1 / 5, abs=4 * spread)
  assert 0 < spread < 0.02


def test_the_interval_holds_the_truth_about_as_often_as_it_says(load):
  noise = load("gradient_noise")
  random = np.random.default_rng(1)
  held = 0
  for _ in range(200):
    batches = np.ones(50) + 2 * random.normal(size=(12, 50))
    found, spread = noise.cosines(batches)
    held += abs(found - 1 / 5) < 1.96 * spread
  assert 170 <= held < 200


def test_equal_batches_are_all_signal(load):
  found, spread = load("gradient_noise").cosines(np.ones((3, 7)))
  assert found == pytest.approx(1)
  assert spread == pytest.approx(0, abs=1e-6)


def test_too_few_batches_are_refused(load, capsys):
  with pytest.raises(SystemExit):
    load("gradient_noise").main([str(EXPERIMENT), "num_updates=2"])
  assert "an interval needs 3" in capsys.readouterr().err


@pytest.mark.slow
def test_every_credit_has_a_gradient(load, capsys):
  load("gradient_noise").main(
    [str(EXPERIMENT), "num_updates=3", "tasks_per_update=2", "group_size=2",
     "rollout.max_steps=3", "--warmup", "1"]
  )  # fmt: skip
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert len(found["cosines"]) == 8
  assert np.isfinite(list(found["cosines"].values())).all()
  # Credit with a critic is never all 0; that of groups may be.
  step, cut = (found["cosines"][x][0] for x in ("step GAE", "step GAE, λ 0"))
  assert 0 < abs(step) < 1
  assert step != cut
