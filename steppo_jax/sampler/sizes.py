"""Sizes of the sampler's programs: how few there are, and what they hold."""

import functools

# Most programs in all, with up to six sizes of prefill.
MOST = 8
# A context with room for prompts of a thousand tokens has prefill of this size,
# whatever the options say.
LONG = 512
# Tokens that are read at once: more of them use a matrix unit better, fewer are
# padded less.
READ_AT_ONCE = {"cpu": 256}
READ_AT_ONCE_ELSEWHERE = 2048
# Turns of prefill cost as much as so many tokens, beside those that they read.
CALL = 8


def read_rows(num_slots: int, size: int, platform: str) -> int:
  """Runs of `size` tokens that are read at once in so many slots."""
  at_once = READ_AT_ONCE.get(platform, READ_AT_ONCE_ELSEWHERE)
  return min(num_slots, max(-(-num_slots // 8), at_once // size))


def shapes(
  num_slots: int, context: int, prefill_lengths: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """What programs there are: sizes of prefill and of sampling, ascending.

  Arguments are those of `Programs`. There is one more program, for copies.
  """
  sizes = list(prefill_lengths)
  # A size is not needed if a smaller one holds all there is.
  while len(sizes) > 1 and sizes[-2] >= context:
    sizes.pop()
  if sizes[-1] < LONG <= context // 2 and len(sizes) < MOST - 2:
    sizes.append(LONG)
  # All slots, an eighth of them, a third.
  rows = num_slots, -(-num_slots // 8), -(-num_slots // 3)
  return tuple(sizes), tuple(sorted(set(rows[: max(1, MOST - 1 - len(sizes))])))


@functools.lru_cache(maxsize=4096)
def cut(length: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
  """Sizes, largest first, that hold a run of tokens at the least cost.

  Args:
    length: Tokens, at least one.
    sizes: What there is, ascending. A run costs its size and `CALL` more.
  """
  largest = sizes[-1]
  whole = max(0, length // largest - 1)
  rest, found = length - whole * largest, [(0, ())]
  for n in range(1, rest + 1):
    ways = (
      (size + CALL + found[max(0, n - size)][0], size, n) for size in sizes
    )
    cost, size, n = min(ways)
    found.append((cost, (size, *found[max(0, n - size)][1])))
  return (largest,) * whole + tuple(sorted(found[rest][1], reverse=True))
