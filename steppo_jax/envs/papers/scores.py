"""How well a list of papers answers a query."""

from collections.abc import Collection, Sequence

CUTOFFS = (None, 100, 50, 25)


def precision_recall_f1(
  ranked: Sequence[str], answers: Collection[str]
) -> tuple[float, float, float]:
  """Precision, recall and F1 of a list of different papers.

      P = hits / |ranked|    R = hits / |answers|    F1 = 2 P R / (P + R)

  A quotient of nothing is 0.0.

  Args:
    ranked: Ids of what was found.
    answers: Ids of what was to be found, whether they are in the library or
      not.
  """
  hits = len(set(ranked) & set(answers))
  if not hits:
    return 0.0, 0.0, 0.0
  precision, recall = hits / len(ranked), hits / len(set(answers))
  return precision, recall, 2 * precision * recall / (precision + recall)


def table(ranked: Sequence[str], answers: Collection[str]) -> dict[str, float]:
  """Precision, recall and F1 of all papers and of the first 100, 50 and 25.

  Args:
    ranked: Ids of what was found, best first.
    answers: Ids of what was to be found.

  Returns:
    Numbers under names such as "recall@all" and "f1@25".
  """
  out = {}
  for cutoff in CUTOFFS:
    numbers = precision_recall_f1(ranked[:cutoff], answers)
    for name, number in zip(("precision", "recall", "f1"), numbers,
                            strict=True):  # fmt: skip
      out[f"{name}@{cutoff or 'all'}"] = number
  return out
