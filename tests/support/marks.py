"""Which of many values a test shows in `make test`, and which at night."""

import pytest


def some(*fast, slow=()):
  """Values of `pytest.mark.parametrize`, of which some are slow.

  Each value of a test of the learner is a program of its own to compile, and
  those of `slow` show least beside the others: another credit, another mesh.

  Args:
    fast: Values of `make test`; a tuple is one value for each name.
    slow: Values of `make test-slow`; what is in `fast` too is left out.
  """
  values = lambda one: one if isinstance(one, tuple) else (one,)
  return [
    *fast,
    *(
      pytest.param(*values(one), marks=pytest.mark.slow)
      for one in slow
      if one not in fast
    ),
  ]
