"""The ragged episodes with winners among them, and what a teacher reads."""

import dataclasses
import functools

import ragged_episodes
import worlds

from steppo_jax.packing import options, teacher_rows
from steppo_jax.packing import rows as packing

# Of six groups of two: the first member, both, nobody, the second, ...
WON = (0, 2, 3, 7, 10, 11)


@functools.cache
def episodes(won=WON):
  """The ragged episodes of the layouts, some of which were won."""
  return tuple(
    dataclasses.replace(t, success=i in won)
    for i, t in enumerate(ragged_episodes.episodes())
  )


@functools.cache
def packed(layout, won=WON, *, length=None, order=None):
  """A batch and the rows of its teacher."""
  played = episodes(won)
  config = options.PackingConfig(layout, worlds.CONTEXT, teacher_length=length)
  # Both members of a group in one part, so that the tree can span them.
  made = packing.pack(
    played, [i // 2 % 2 for i in range(len(played))], config,
    num_parts=2, rows_multiple=8, pad_id=0,
  )  # fmt: skip
  order = range(len(played)) if order is None else order
  rows, left_out = teacher_rows.pack(
    [played[i] for i in order], made, config, rows_multiple=8, pad_id=0
  )
  return made, rows, left_out


def contexts(won=WON):
  """What the teacher of each trajectory has seen, by uid."""
  played = episodes(won)
  return dict(
    zip((t.uid for t in played), teacher_rows.choose(played), strict=True)
  )


def steps_of(made):
  """(step, its trajectory) by number."""
  pairs = [(s, t) for t in made.trajectories for s in t.steps]
  return dict(enumerate(pairs, 1))
