"""The main table: ten methods on the tiny household games, 5 seeds.

    python -m steppo_jax compare experiments/compare/household.py --jobs 2

Each method has its own clip and may choose among two rates and two scales of
that clip on a seed that is not reported: 4 runs of the search and 5 seeds a
method, 90 runs. What was run of it: docs/comparison.md.
"""

import pathlib

from steppo_jax.compare.matrix import Matrix, Method, Search, World

BASE = pathlib.Path(__file__).parents[1] / "household_steppo.py"

# 36 updates of 128 episodes: about 3 minutes on one quiet core. 0.95 and 0.9 a
# step are what experiments/household_steppo.py was tuned to, 0.987 and 0.974 a
# token the same over 4 tokens.
BUDGET = (
  "num_updates=36",
  "learner.warmup_steps=20",
  "evaluation.every=12",
  "evaluation.episodes=300",
  "checkpoint_every=12",
  "num_devices=1",
  "algorithm.discount=None",
  "algorithm.lambda_=None",
  "learner.critic_layers=None",
)
STEP_CREDIT = ("algorithm.discount=0.95", "algorithm.lambda_=0.9")
TOKEN_CREDIT = ("algorithm.discount=0.987", "algorithm.lambda_=0.974")
GROUPS = ("tasks_per_update=16", "group_size=8")

# A geometric mean over 4 tokens moves about half as far as a token's ratio, a
# square root as far, a product twice as far.
STEPPO = Method("steppo", (0.1, 0.1), ("algorithm.name=steppo", *STEP_CREDIT))
PPO = Method("ppo", (0.2, 0.2), ("algorithm.name=ppo", *TOKEN_CREDIT))


def grouped(name, clip, *more):
  """A method without a critic: 16 games, 8 episodes of each."""
  return Method(name, clip, (f"algorithm.name={name}", *GROUPS, *more))


MATRIX = Matrix(
  base=str(BASE),
  assignments=BUDGET,
  methods=(
    STEPPO,
    Method("capo", (0.2, 0.2), ("algorithm.name=capo", *STEP_CREDIT)),
    PPO,
    Method("turn_ppo", (0.4, 0.4), ("algorithm.name=turn_ppo", *STEP_CREDIT)),
    grouped("grpo", (0.2, 0.2)),
    grouped("rloo", (0.2, 0.2)),
    # Return to go over the tokens: whitened over the batch, no group is read.
    Method("reinforce_pp", (0.2, 0.2), ("algorithm.name=reinforce_pp",)),
    grouped("gspo", (0.1, 0.1)),
    grouped("gigpo", (0.2, 0.2)),
    grouped("gagpo", (0.1, 0.1), *STEP_CREDIT),
  ),
  worlds=(World("tiny"),),
  seeds=(0, 1, 2, 3, 4),
  search=Search(
    learning_rates=(4e-4, 8e-4), clip_scales=(1.0, 0.5), seeds=(100,)
  ),
)
