"""Step or token, in credit and ratio, where an action has 28 tokens: 3 seeds.

    python -m steppo_jax compare experiments/compare/scratchpad_ablation.py \
      --jobs 2 --known docs/compare/scratchpad.jsonl

`ablation.py` in the setting of `scratchpad.py`. 12 runs, of which 6 are known.
"""

import dataclasses

import scratchpad

_METHODS = {x.name: x for x in scratchpad.MATRIX.methods}
_STEPPO, _PPO = _METHODS["steppo"], _METHODS["ppo"]


def _mixed(name, credit, clip, *more):
  """The credit of one method with the ratio and the clip of the other."""
  return dataclasses.replace(
    credit, name=name, clip=clip, assignments=(*credit.assignments, *more)
  )


MATRIX = dataclasses.replace(
  scratchpad.MATRIX,
  methods=(
    _STEPPO,
    _mixed(
      "step_credit_token_ratio", _STEPPO, _PPO.clip, "algorithm.ratio=token"
    ),
    _mixed(
      "token_credit_step_ratio",
      _PPO,
      _STEPPO.clip,
      "algorithm.ratio=step",
      "algorithm.loss_weighting=step",
    ),
    _PPO,
  ),
  seeds=(0, 1, 2),
)
