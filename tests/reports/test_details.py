"""The second figure, and the report for a pull request."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppo_jax.reports import details, intervals, markdown, report
from steppo_jax.storage import credit, metrics


def make_credit(update, seed=0):
  """Episodes whose critic is right on average; one step has no ratio."""
  random = np.random.default_rng([seed, update])
  lengths = random.integers(1, 5, size=30)
  steps = int(lengths.sum())
  numbers = lambda n: random.standard_normal(n).astype(np.float32)
  value = random.uniform(0, 1, steps).astype(np.float32)
  ratio = np.exp(0.1 * numbers(steps))
  ratio[0] = np.nan
  reward = (random.uniform(size=steps) < value).astype(np.float32)
  return credit.Credit(
    update=update, checkpoint_update=update, algorithm="steppo",
    episodes=tuple(f"{update}-{g}-0" for g in range(len(lengths))),
    first_step=np.cumsum([0, *lengths]),
    first_token=np.arange(steps + 1),
    reward=reward, value=value, delta=numbers(steps),
    advantage=numbers(steps), target=value, ratio=ratio,
    **{name: numbers(steps) for name in credit.OF_TOKENS},
  )  # fmt: skip


def make_run(path, successes, *, seed=0, credits=(), lines=None, **options):
  """A run that was evaluated every 10 updates on 40 episodes."""
  with metrics.MetricsWriter(path) as writer:
    for index, success in enumerate(successes):
      writer.write(
        10 * index,
        {
          "minutes": 2.0 * index, "eval/success": success,
          "eval/episodes": 40, "eval/success/heat": success / 2,
          "eval/success/look|at": success, "eval/episodes/heat": 30,
          "tokens_per_s": 100.0, **(lines or {}),
        },
      )  # fmt: skip
  config = {
    "seed": seed, "run_dir": str(path),
    "algorithm": {"name": "steppo", "discount": None}, **options,
  }  # fmt: skip
  (path / "config.json").write_text(json.dumps(config))
  facts = {"command": "train a|b", "commit": "abc", "hardware": "2 cores"}
  (path / "run.json").write_text(json.dumps(facts))
  for update in credits:
    credit.write(credit.path_of(path, update), make_credit(update))
  return path


@given(
  st.lists(
    st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=60
  ),
  st.integers(1, 8),
)
def test_bins_of_values_are_those_of_a_loop(steps, most):
  values, returns = np.array(steps, np.float64).T
  bins = details.reliability(values, returns, most)
  assert 1 <= len(bins) <= most
  assert sum(b.count for b in bins) == len(steps)
  assert all(a.value < b.value for a, b in itertools.pairwise(bins))
  # By a loop: a step goes into the bin of the first step of its value.
  ordered = sorted(steps, key=lambda one: one[0])
  place, slow = None, {}
  for i, (value, returned) in enumerate(ordered):
    if i == 0 or value > ordered[i - 1][0]:
      place = i * most // len(ordered)
    slow.setdefault(place, []).append((value, returned))
  for found, members in zip(bins, slow.values(), strict=True):
    v, r = zip(*members, strict=True)
    assert found.count == len(members)
    assert found.value == pytest.approx(np.mean(v))
    assert found.returned == pytest.approx(np.mean(r), abs=1e-9)
    assert found.low <= found.returned + 1e-9
    assert found.high >= found.returned - 1e-9


def test_an_interval_of_a_bin_by_hand():
  # Mean 2 and variance 2 of 1 and 3: 1.96 sqrt(2) / sqrt(2) to each side.
  [found] = details.reliability(np.zeros(2), np.array([1.0, 3.0]))
  assert (found.low, found.high) == pytest.approx((0.04, 3.96))
  assert details.reliability(np.zeros(0), np.zeros(0)) == []


def test_returns_are_discounted_within_their_episode():
  found = make_credit(3)
  slow = []
  for e in range(len(found.episodes)):
    rewards = found.reward[found.first_step[e] : found.first_step[e + 1]]
    for k in range(len(rewards)):
      slow.append(
        sum(0.5 ** (i - k) * rewards[i] for i in range(k, len(rewards)))
      )
  np.testing.assert_allclose(details.returns_of(found, 0.5), slow, rtol=1e-6)


def test_the_figure_has_a_panel_for_what_there_is(tmp_path):
  lines = {
    "rollout/response_tokens": 9.0, "rollout/response_tokens_won": 8.0,
    "rollout/staleness": 0.5, "rollout/staleness_share/0": 0.5,
    "rollout/staleness_share/1": 0.5, "policy/ratio_q01": 0.9,
    "policy/ratio_q50": 1.0, "policy/ratio_q99": 1.1,
    "policy/advantage_abs": 0.7,
  }  # fmt: skip
  path = tmp_path / "details.png"
  draw = lambda run: details.draw(path, [report.read_run(run)])
  full = make_run(tmp_path / "a", [0.1, 0.5], credits=(1, 2, 9), lines=lines)
  assert draw(full) == [
    "success by family, on the panel", "length of a response in tokens",
    "updates between sampling and training",
    "ratio of a step, before the update",
    "advantage of a step", "critic, updates 1 to 9",
  ]  # fmt: skip
  assert path.read_bytes().startswith(b"\x89PNG")
  # Metrics alone say less, and nothing of the critic.
  assert draw(make_run(tmp_path / "b", [0.1, 0.5], lines=lines))[3:] == [
    "ratio of a step, at the end of the update", "advantage",
  ]  # fmt: skip
  bare = tmp_path / "c"
  with metrics.MetricsWriter(bare) as writer:
    writer.write(0, {"minutes": 1, "eval/success": 0.1, "eval/episodes": 4})
  assert draw(bare) == []
  assert not path.exists()


@pytest.mark.parametrize(
  ("algorithm", "discount"),
  [
    ({"name": "steppo"}, 0.99),
    ({"name": "steppo", "discount": 0.5}, 0.5),
    ({"name": "ppo"}, 1.0),
    ({"name": "ppo", "discount": 0.9}, None),  # Of a token, not of a step.
  ],
)
def test_the_discount_of_returns_is_that_of_the_run(
  tmp_path, algorithm, discount
):
  run = make_run(tmp_path / "run", [0.1], algorithm=algorithm)
  assert details.discount_of(details.row_of(run)) == discount


def test_a_run_that_says_nothing_of_an_algorithm_has_none(tmp_path):
  run = make_run(tmp_path / "run", [0.1], algorithm=None)
  assert details.row_of(run) is None
  (run / "config.json").unlink()
  assert details.row_of(run) is None


def test_runs_that_differ_in_their_seed_are_one_variant(tmp_path):
  paths = [
    make_run(tmp_path / "a0", [0.1, 0.5]),
    make_run(tmp_path / "b0", [0.1, 0.7], learner={"rate": 2}),
    make_run(tmp_path / "a1", [0.1, 0.6], seed=1),
  ]
  runs = [report.read_run(path) for path in paths]
  groups = markdown.variants(runs)
  names = [[run.path.name for run in group] for group in groups]
  assert names == [["a0", "a1"], ["b0"]]
  assert markdown.differences(groups) == [("learner.rate", ["", "2"])]


def _cells(text, first):
  """Those of the first line of a table that begins so."""
  line = next(x for x in text.splitlines() if x.startswith(f"| {first} |"))
  return [x.strip() for x in line.replace("\\|", "!").split("|")[1:-1]]


def test_a_report_for_a_pull_request_compares_with_the_first(tmp_path):
  a = make_run(tmp_path / "runs" / "before", [0.25, 0.5])
  b = make_run(tmp_path / "runs" / "after", [0.25, 0.75], learner={"rate": 2})
  file = tmp_path / "out" / "pr.md"
  file.parent.mkdir()
  assert report.report(a, b, markdown_file=file) == file
  text = file.read_text()
  low, high = intervals.wilson_interval(30, 40)
  l2, h2 = intervals.wilson_interval(20, 40)
  row = _cells(text, "after")
  assert row[3] == f"0.750 [{low:.3f}, {high:.3f}]"
  # Newcombe's interval of the difference of 30 and 20 successes of 40.
  down = ((0.75 - low) ** 2 + (h2 - 0.5) ** 2) ** 0.5
  up = ((high - 0.75) ** 2 + (0.5 - l2) ** 2) ** 0.5
  assert row[4] == f"+0.250 [{0.25 - down:+.3f}, {0.25 + up:+.3f}]"
  assert row[5:7] == ["10", "2.0"]
  # 15 of 30: its own number of episodes; of the other family none is known.
  low, high = intervals.wilson_interval(0.375 * 30, 30)
  assert _cells(text, "heat")[2] == f"0.375 [{low:.3f}, {high:.3f}]"
  assert _cells(text, r"look\|at")[2] == "0.750"
  assert "| `learner.rate` |  | `2` |" in text
  assert r"`train a\|b`" in text
  # All that it links to is there, seen from where it lies.
  links = [
    x.partition("](<")[2][:-2] for x in text.splitlines() if x[:2] == "!["
  ]
  assert links == [
    f"../runs/{run}/{name}.png"
    for run in ("before", "after")
    for name in ("report", "details")
  ]
  assert all((file.parent / link).is_file() for link in links)


@pytest.mark.slow
def test_a_report_of_seeds_has_no_comparison(tmp_path):
  paths = [make_run(tmp_path / str(i), [0.1, 0.5], seed=i) for i in range(2)]
  text = report.report(*paths, markdown_file=tmp_path / "pr.md").read_text()
  assert "Options that differ" not in text
  assert _cells(text, "0")[:2] == ["0", "2"]
  with pytest.raises(ValueError, match=r"--markdown=.*No such file"):
    report.report(*paths, markdown_file=tmp_path / "missing" / "pr.md")
