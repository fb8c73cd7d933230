"""Every estimator of the table against the true advantage, without learning.

    python experiments/chain/estimators_study.py [--output docs/estimators]

A fixed policy walks the key-and-door world (`door`), where values are exact.
Batches of 8 to 512 episodes, 8 of a start, go through the estimators of
`steppo_jax.ALGORITHMS` as the trainer calls them. Per estimator and batch size:

- bias: 1 - cos² between the mean estimate of each (time, state, action) and its
  true advantage, both weighted by visits. No scale enters: estimators whiten.
- variance: of the estimates about these means, in units of the mean square of
  the true advantage, at the scale at which the part of the mean that points
  along the true advantage is as large as it: noise per signal.
- correlation with the true advantage over the steps of a batch.
- gradient: cosine between the policy gradient of a batch and the true one.

Two aims define what is true: reward discounted by 0.95 a step without a limit,
and the probability of success within the steps that are left. Critics: exact
for the estimator's own discount and clock, without knowing the time; with an
error per state, fixed for a seed, of half the deviation of the values, or of
twice; and none (0). Writes PREFIX.jsonl, PREFIX.png and prints a table.
"""

import argparse
import dataclasses
import functools
import json
import pathlib

import door as door_lib
import jax
import jax.numpy as jnp
import numpy as np
import study_report

import steppo_jax
from steppo_jax import batch
from steppo_jax.algorithms import estimators, objective
from steppo_jax.algorithms import table as algorithms_table

DOOR = door_lib.Door()
POLICIES = {"early": 0.6, "late": 0.85}
GROUP = 8
EPISODES = (8, 32, 128, 512)
SEEDS = range(3)
TOTAL = 4096  # episodes of each seed, in batches of one of these sizes
DISCOUNT = 0.95  # of the aim
AIMS = study_report.AIMS
_LEAST_COSINE = 0.01
CRITICS = {"exact": (1.0, 0.0), "error 0.5": (1.0, 0.5),
           "error 2": (1.0, 2.0), "none": (0.0, 0.0)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of the table with constants of its own, and a critic.

  Attributes:
    name: Row of the table.
    discount: γ; None for the row's.
    lambda_: λ; None for the row's.
    critic: Of `CRITICS`; not read by rows without one.
    bootstrap: What follows a cut.
  """

  name: str
  discount: float | None = None
  lambda_: float | None = None
  critic: str = "exact"
  bootstrap: str = "value"

  @property
  def row(self) -> algorithms_table.Algorithm:
    row = steppo_jax.ALGORITHMS[self.name]
    given = {"discount": self.discount, "lambda_": self.lambda_}
    given = {k: v for k, v in given.items() if v is not None}
    return dataclasses.replace(row, **given)

  @property
  def label(self) -> str:
    text = f"{self.name} γ{self.row.discount:g} λ{self.row.lambda_:g}"
    if self.row.critic:
      text += f", critic {self.critic}"
    return text + (", zero" if self.bootstrap == "zero" else "")


def variants() -> list[Variant]:
  """One row of each estimator that needs no teacher, and what varies in it."""
  made = [
    Variant(name, discount, lambda_)
    for name in ("steppo", "ppo")
    for discount, lambda_ in ((0.95, 0.95), (0.95, 1), (0.99, 0.95), (0.99, 1))
  ]
  # Per token, 0.984 is 0.95 a step of 3.2 tokens, the mean of either policy.
  made += [Variant("ppo", 1.0, 1.0), Variant("ppo", 0.984, 1.0)]
  made += [
    Variant(name, 0.95, 0.95, critic)
    for name in ("steppo", "ppo")
    for critic in ("error 0.5", "error 2", "none")
  ]
  made += [Variant("steppo", 0.95, 1.0, "error 2")]
  made += [
    Variant(name, discount, 0.95, "exact", "zero")
    for name in ("steppo", "ppo")
    for discount in (0.95, 0.99)
  ]
  made += [Variant("turn_ppo"), Variant("vetta")]
  rows = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline")
  made += [Variant(name) for name in (*rows, "gigpo", "hgpo")]
  made += [Variant("gigpo", 0.99)]
  made += [Variant("gagpo", 1.0, 1.0), Variant("gagpo", 0.95, 0.95)]
  return [*made, Variant("gagpo", 0.95, 1.0), Variant("gagpo", 0.99, 0.95)]


def to_batch(door, steps, value_s, value_sa, clock, discount):
  """Steps as one row each: prompt, tokens of the action, next prompt.

  Args:
    door: The world.
    steps: `chain.Steps` with [S] fields, slot 0 unused.
    value_s: [n] critic before a step.
    value_sa: [n, 2] critic at the last token of an action.
    clock: "step" or "token", what the critic counts.
    discount: γ of the critic.

  Returns:
    Tokens [S - 1, T], table [S] and the critic's values [S - 1, T].
  """
  slots, width = steps.live.size, max(door.lengths) + 2
  column = jnp.arange(width)
  state, action = steps.state[1:], steps.action[1:]
  length = jnp.asarray(door.lengths)[action] * steps.live[1:]
  acts = (column > 0) & (column <= length[:, None])
  ids = jnp.where(acts, jnp.arange(1, slots)[:, None], 0).astype(jnp.int32)
  parent = jnp.where(column == width - 1, column, jnp.maximum(column - 1, 0))
  left = jnp.maximum(length[:, None] - 1 - column, 0)
  decay = discount**left if clock == "token" else 1.0
  value = jnp.broadcast_to(decay * value_sa[state, action][:, None], ids.shape)
  value = value.at[:, 0].set(value_s[state])
  value = value.at[:, -1].set(value_s[steps.after[1:]])
  like = jnp.zeros_like(ids)
  tokens = batch.TokenBatch(
    tokens=like,
    positions=like,
    parent=jnp.broadcast_to(parent, ids.shape).astype(jnp.int32),
    subtree_end=like,
    step_ids=ids,
    behaviour_logp=like.astype(jnp.float32),
  )
  row = jnp.maximum(jnp.arange(slots) - 1, 0)
  episode = row // door.limit
  group = episode // GROUP
  null = lambda x: jnp.where(steps.live, x, 0).astype(jnp.int32)
  table = batch.StepTable(
    live=steps.live,
    reward=steps.reward,
    num_tokens=jnp.pad(length, (1, 0)).astype(jnp.int32),
    last=steps.last,
    truncated=steps.truncated,
    boundary=null(row * width),
    bootstrap_at=null(row * width + width - 1),
    trajectory=null(episode),
    group=null(group),
    anchor=null(group * door.num_states + steps.state),
  )
  return tokens, table, value


def step_advantages(row, tokens, table, value, bootstrap):
  """[S] estimates; of tokens, the one at the first token of each action.

  That token chooses the action and is the only one that could be another: the
  gradient of the policy meets no other advantage.
  """
  tokens, table = estimators.resolve_truncation(
    tokens, table, bootstrap=bootstrap
  )
  found = objective.advantages(row, tokens, table, value, None).advantage
  return found if found.ndim == 1 else jnp.pad(found[:, 1], (1, 0))


def _critic(door, row, chances, key, scale, error):
  """Values [n] and [n, 2], the clock they count and their γ."""
  clock = row.critic or "step"
  # The targets of vetta come from its token part.
  discount = dict(row.options).get("token_discount", row.discount)
  value_s, value_sa = door_lib.values(
    door, chances, discount=discount, clock=clock
  )
  noise = jax.random.normal(key, (door.num_states, 3)) * error * value_s.std()
  value_s, value_sa = value_s + noise[:, 0], value_sa + noise[:, 1:]
  return scale * value_s, scale * value_sa, clock, discount


def _correlation(x, y, live):
  mean = lambda z: jnp.sum(z * live) / live.sum()
  x, y = x - mean(x), y - mean(y)
  return mean(x * y) / jnp.sqrt(jnp.maximum(mean(x * x) * mean(y * y), 1e-20))


@functools.partial(
  jax.jit, static_argnames=("name", "bootstrap", "door", "episodes", "batches")
)
def measure(
  key, right_way, discount, lambda_, scale, error,
  *, name, bootstrap, door, episodes, batches,
):  # fmt: skip
  """Sums over all batches of one seed, and numbers of each batch.

  Returns:
    By name: "cells" [3, limit, n, 2] number of steps, sum of the estimates and
    of their squares; for each aim "correlation/AIM" and "gradient/AIM"
    [batches].
  """
  row = dataclasses.replace(
    steppo_jax.ALGORITHMS[name], discount=discount, lambda_=lambda_
  )
  chances = door_lib.policy(door, right_way)
  critic_key, batch_key = jax.random.split(key)
  critic = _critic(door, row, chances, critic_key, scale, error)
  truth = door_lib.true_advantages(door, chances, DISCOUNT)
  seen = door_lib.visits(door, chances)[..., None]
  spread = seen * chances.prod(1, keepdims=True)
  gradient = {
    aim: jnp.sum(spread * (x[..., 1:] - x[..., :1]), axis=(0, 2))
    for aim, x in truth.items()
  }
  time = jnp.maximum(jnp.arange(episodes * door.limit + 1) - 1, 0) % door.limit

  def one(key):
    steps = door_lib.sample(door, chances, key, episodes=episodes, group=GROUP)
    found = step_advantages(
      row, *to_batch(door, steps, *critic), bootstrap=bootstrap
    )
    live = steps.live.astype(jnp.float32)
    at = (time, steps.state, steps.action)
    add = lambda x: jnp.zeros((door.limit, door.num_states, 2)).at[at].add(x)
    cells = jnp.stack([add(live), add(found * live), add(found**2 * live)])
    slope = (steps.action - chances[steps.state, 1]) * found * live
    slope = jnp.zeros(door.num_states).at[steps.state].add(slope)
    result = {"cells": cells}
    for aim in AIMS:
      result[f"correlation/{aim}"] = _correlation(found, truth[aim][at], live)
      norm = jnp.linalg.norm(slope) * jnp.linalg.norm(gradient[aim])
      result[f"gradient/{aim}"] = slope @ gradient[aim] / (norm + 1e-12)
    return result

  found = jax.lax.map(one, jax.random.split(batch_key, batches))
  return found | {"cells": found["cells"].sum(0)}


def bias_and_variance(cells, truth) -> tuple[float, float]:
  """What of the mean estimate is not along the truth, and noise per signal.

  Args:
    cells: [3, ...] number of steps, sum of estimates, sum of their squares.
    truth: [...] true advantages.
  """
  count, total, square = np.asarray(cells, np.float64)
  used = count >= 2
  count, total, square = count[used], total[used], square[used]
  truth = np.asarray(truth, np.float64)[used]
  weight = count / count.sum()
  mean = total / count
  within = np.maximum(square - count * mean**2, 0) / (count - 1)
  aim = np.sum(weight * truth**2)
  match = np.sum(weight * mean * truth)
  # A mean of few steps is scattered: what that adds to its square goes off.
  power = np.sum(weight * (mean**2 - within / count))
  power = max(power, match**2 / aim)
  # An estimate that points nowhere, or away, would have infinite noise.
  match = max(match, _LEAST_COSINE * np.sqrt(power * aim))
  noise = np.sum(weight * within) * aim / match**2
  return 1 - match**2 / (power * aim), noise


def study(made, *, seeds, episodes, total, policies):
  """One line per policy, variant, batch size and seed."""
  lines = []
  for policy, right_way in policies.items():
    chances = door_lib.policy(DOOR, right_way)
    truth = door_lib.true_advantages(DOOR, chances, DISCOUNT)
    for variant in made:
      for size in episodes:
        for seed in seeds:
          found = measure(
            jax.random.key(seed), right_way, variant.row.discount,
            variant.row.lambda_, *CRITICS[variant.critic], name=variant.name,
            bootstrap=variant.bootstrap, door=DOOR, episodes=size,
            batches=total // size,
          )  # fmt: skip
          lines.append(_line(policy, variant, size, seed, found, truth))
  return lines


def _line(policy, variant, size, seed, found, truth):
  row = variant.row
  line = {
    "policy": policy, "label": variant.label, "name": variant.name,
    "discount": row.discount, "lambda": row.lambda_,
    "critic": variant.critic if row.critic else None,
    "bootstrap": variant.bootstrap, "episodes": size, "seed": seed,
  }  # fmt: skip
  for aim in AIMS:
    bias, variance = bias_and_variance(found["cells"], truth[aim])
    line |= {f"bias/{aim}": bias, f"variance/{aim}": variance}
    for name in ("correlation", "gradient"):
      line[f"{name}/{aim}"] = float(np.mean(found[f"{name}/{aim}"]))
  return {
    k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", default="docs/estimators", help="prefix")
  prefix = parser.parse_args().output
  lines = study(
    variants(),
    seeds=SEEDS,
    episodes=EPISODES,
    total=TOTAL,
    policies=POLICIES,
  )
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  pathlib.Path(f"{prefix}.jsonl").write_text(text)
  study_report.draw(f"{prefix}.png", lines)
  print(study_report.tables(lines, 128))
  print(f"wrote {prefix}.jsonl and {prefix}.png")


if __name__ == "__main__":
  main()
