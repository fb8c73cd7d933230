"""Device records: what the learner reads, as pytrees of arrays."""

from typing import NamedTuple

import chex


@chex.dataclass(frozen=True)
class TokenBatch:
  """Tokens in rows. Each row holds a forest of tokens in depth-first order.

  Token j is visible to token i exactly if `j <= i < subtree_end[j]`.

  Attributes:
    tokens: [B, T] int32 token ids, the pad id on unused slots.
    positions: [B, T] int32 depth of the token in its tree, from 0.
    parent: [B, T] int32 in-row index of the token that this one continues and
      whose logits predict it; a root is its own parent.
    subtree_end: [B, T] int32 in-row index one past the token's last
      descendant; on unused slots, the slot's own index (visible to nobody).
    step_ids: [B, T] int32 step whose action the token belongs to; 0 elsewhere.
    behaviour_logp: [B, T] float32 log-probability of each action token under
      the policy that sampled it; not read where `step_ids` is 0.
    reasoning: [B, T] bool, action tokens that are part of a thought; None where
      no algorithm asks for it.
  """

  tokens: chex.Array
  positions: chex.Array
  parent: chex.Array
  subtree_end: chex.Array
  step_ids: chex.Array
  behaviour_logp: chex.Array
  reasoning: chex.Array | None = None


@chex.dataclass(frozen=True)
class StepTable:
  """Everything known of steps. Slot 0 is the null step.

  The steps of a trajectory are adjacent and in order.

  Attributes:
    live: [S] bool, True on slots that hold a real step.
    reward: [S] float32 reward of the transition that the step caused.
    num_tokens: [S] int32 number of action tokens, L in the formulas; 0 for an
      empty response and where not live.
    last: [S] bool, True at the final step of each trajectory and on every
      slot that is not live.
    truncated: [S] bool, True at a final step whose episode was cut by a limit.
    boundary: [S] int32 flat index (row * T + column) of the last prompt
      token, where V is read, whether or not the response is empty.
    bootstrap_at: [S] int32 flat index of the last token of the prompt that
      would have come next; read only where `truncated`.
    trajectory: [S] int32 number of the trajectory, 0 .. N-1; N-1 is an upper
      bound fixed by the shape, and slots that are not live hold 0.
    group: [S] int32 number of the group, 0 .. N-1; 0 where not live.
    anchor: [S] int32 number of the state, 0 .. S-1: equal exactly where group
      and anchor observation both are, and unlike all others without an anchor
      observation; 0 where not live.
    success: [S] bool, whether the trajectory solved its task; False where not
      live. None in tables that do not tell.
    version: [S] int32 number of updates behind the weights that sampled the
      step; 0 where not live. None likewise.
  """

  live: chex.Array
  reward: chex.Array
  num_tokens: chex.Array
  last: chex.Array
  truncated: chex.Array
  boundary: chex.Array
  bootstrap_at: chex.Array
  trajectory: chex.Array
  group: chex.Array
  anchor: chex.Array
  success: chex.Array | None = None
  version: chex.Array | None = None


@chex.dataclass(frozen=True)
class Advantages:
  """Credit for actions and targets for the critic.

  Attributes:
    advantage: [S] one number a step, or [B, T] one number an action token.
    target: [S] or [B, T] value target on the critic's clock, or both of them
      for a critic with two heads; None without a critic.
  """

  advantage: chex.Array
  target: chex.Array | tuple[chex.Array, chex.Array] | None


class PromptRows(NamedTuple):
  """The prompts of a batch again, for a critic whose values are of steps.

  Attributes:
    tokens: [M, R, T] rows of the shape of the batch's, without actions; the
      steps of a part lie in the same part.
    rows_used: [M] int32 number of rows in use in every part.
    boundary: [S] int32 flat index here of the last token of each step's prompt;
      0 where not live.
    bootstrap_at: [S] int32 the same of the prompt after a truncated episode; 0
      elsewhere.
  """

  tokens: TokenBatch
  rows_used: chex.Array
  boundary: chex.Array
  bootstrap_at: chex.Array


class TeacherRows(NamedTuple):
  """The steps of a batch again, as a teacher that knows more reads them.

  An action token at flat index i of the batch, of step k, lies at i + shift[k]
  of the teacher's rows.

  Attributes:
    tokens: [1, R, T] rows, whose `step_ids` number the steps of the batch; R
      and T are not those of the batch.
    rows_used: [1] int32 number of rows in use.
    shift: [S] int32 flat index here minus flat index in the batch; 0 for steps
      that are not here.
    covered: [S] bool, True for the steps that are here.
  """

  tokens: TokenBatch
  rows_used: chex.Array
  shift: chex.Array
  covered: chex.Array
