"""What options that any row may have must be; `table` checks the rest."""

from steppo_jax.algorithms.table import Algorithm


def check_modes(algorithm: Algorithm) -> None:
  """Refuses settings of the modes that cannot be meant.

  Raises:
    ValueError: a bound is not positive, an option stands without what it needs,
      or there is no such correction.
  """
  kinds = ("tis_token", "tis_step", "icepop", "geometric")
  kind, low, high = (
    algorithm.rollout_correction, algorithm.rollout_low, algorithm.rollout_high
  )  # fmt: skip
  if kind is not None and kind not in kinds:
    raise ValueError(
      f"rollout_correction={kind!r} is none of {', '.join(kinds)}"
    )
  if not 0 <= low <= 1 <= high:
    raise ValueError(
      f"rollout_low={low:g} and rollout_high={high:g} must lie around 1: a"
      " policy that agrees with its sampler is weighed by 1"
    )
  for name in ("sequence_mask", "advantage_clip", "kl_target"):
    value = getattr(algorithm, name)
    if value is not None and value <= 0:
      raise ValueError(f"{name}={value:g} must be above 0, or None for none")
  if (algorithm.max_staleness or 0) < 0:
    raise ValueError(
      f"max_staleness={algorithm.max_staleness} must be at least 0"
    )
  length, cache = algorithm.overlong_length, algorithm.overlong_cache
  if (length is None) != (cache is None) or not 0 < (cache or 1) <= (
    length or 1
  ):
    raise ValueError(
      f"overlong_length={length} and overlong_cache={cache} are set together,"
      " the cache between 1 and the length"
    )
  if algorithm.kl_target is not None and not algorithm.kl_coef:
    raise ValueError(
      f"kl_target={algorithm.kl_target:g} multiplies kl_coef, which is 0: set"
      " kl_coef to the weight that it begins with"
    )


def check_focus(algorithm: Algorithm) -> None:
  """Refuses weights of tokens that are none.

  Raises:
    ValueError: a weight is negative, or `focus_beta` stands alone.
  """
  alpha, beta = algorithm.focus_alpha, algorithm.focus_beta
  if alpha is None and beta:
    raise ValueError(
      f"focus_beta={beta:g} is not read without focus_alpha: set both, 1 weighs"
      " thoughts like actions"
    )
  if alpha is not None and (alpha < 0 or beta < 0):
    raise ValueError(
      f"focus_alpha={alpha:g} and focus_beta={beta:g} must be at least 0"
    )
