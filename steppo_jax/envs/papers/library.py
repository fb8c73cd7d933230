"""Papers, a search over them and their citations, read from JSON lines.

A folder holds, as they are or packed with gzip or xz:

    papers.jsonl (or papers_titles.jsonl)   {"paper_id", "title", "abstract"}
    citations.jsonl                         {"paper_id", "references": [ids]}
      or cocitation_edges.jsonl             {"paper_id", "neighbours": [ids]}
    queries.jsonl                           {"qid", "split", "question",
                                             "answer_ids": [ids]}
    relevance.jsonl, if there is one        {"qid", "paper_id", "score"}

Co-citation edges join the answers of a query, so they would tell an agent what
it is to find: every task leaves out those that only its own query stands for.
"""

import collections
import itertools
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from steppo_jax import files as files_lib
from steppo_jax import types
from steppo_jax.envs.retrieval import index as retrieval_index

_LOG = logging.getLogger(__name__)
_PAPERS = ("papers.jsonl", "papers_titles.jsonl")
_CITATIONS, _COCITATIONS = "citations.jsonl", "cocitation_edges.jsonl"
_MOST_LISTED = 8
_COMMON = retrieval_index.Shared(size=4)
# The libraries of generated queries, which all members of a group read.
_OWN = retrieval_index.Shared(size=64)


class Library(Protocol):
  """The two tools. `service.RemoteLibrary` has them over HTTP."""

  def search(self, query: str, top: int) -> list[retrieval_index.Document]:
    """The best papers, at most `top`, best first; [] if none fits."""

  def expand(self, paper_id: str) -> list[retrieval_index.Document]:
    """The papers that it cites or that cite it.

    Raises:
      KeyError: there is no such paper.
    """


class PaperLibrary:
  """Papers in memory. It never changes, so threads may share it.

  Args:
    papers: Id, title and abstract of each.
    citations: Pairs of ids, in either direction; repeated ones count once.
    stop_words: Words that the search passes over.

  Attributes:
    papers: The papers by id.
    dropped: Edges that were left out, as they lead to a paper that is not here
      or to the paper they come from.

  Raises:
    ValueError: two papers have one id.
  """

  def __init__(
    self,
    papers: Iterable[retrieval_index.Document],
    citations: Iterable[tuple[str, str]],
    *,
    stop_words: frozenset[str] = retrieval_index.STOP_WORDS,
  ):
    self._corpus = retrieval_index.in_memory(papers, stop_words=stop_words)
    self.papers: Mapping[str, retrieval_index.Document] = self._corpus.documents
    self._neighbours: dict[str, dict[str, None]] = {}
    self.dropped = 0
    for one, other in citations:
      if one == other or one not in self.papers or other not in self.papers:
        self.dropped += 1
        continue
      self._neighbours.setdefault(one, {})[other] = None
      self._neighbours.setdefault(other, {})[one] = None

  def search(self, query: str, top: int) -> list[retrieval_index.Document]:
    """The best papers by BM25 of title and abstract."""
    hits = self._corpus.retriever.search(query, top)
    return [self.papers[hit.id] for hit in hits]

  def expand(self, paper_id: str) -> list[retrieval_index.Document]:
    """The papers that it cites or that cite it, in the order of the edges.

    Raises:
      KeyError: there is no such paper.
    """
    if paper_id not in self.papers:
      raise KeyError(paper_id)
    return [self.papers[n] for n in self._neighbours.get(paper_id, ())]


def from_payload(payload: Mapping[str, Any]) -> PaperLibrary:
  """The library that a task brings; the same for the same papers and edges.

  Raises:
    ValueError: its papers or citations are broken.
  """
  try:
    papers = tuple(retrieval_index.Document(*row) for row in payload["papers"])
    edges = tuple((a, b) for a, b in payload.get("citations", ()))
    texts = all(isinstance(text, str) for paper in papers for text in paper)
    if not texts:
      raise TypeError("a paper holds something else than strings")
    return _OWN.get((papers, edges), lambda: PaperLibrary(papers, edges))
  except (TypeError, ValueError) as error:
    raise ValueError(
      "expected papers as [id, title, text] and citations as [id, id] "
      f"({error})"
    ) from error


def open_library(
  data_dir: str | pathlib.Path, *, stop_words: bool = True
) -> PaperLibrary:
  """The library of a folder, read once a process.

  Edges that lead nowhere are left out and counted in a log line.

  Args:
    data_dir: See the top of the module.
    stop_words: Whether the search passes over function words.

  Raises:
    ValueError: a file is missing or a line is broken; the message names it.
  """
  path = files_lib.needed(data_dir, *_PAPERS)
  words = retrieval_index.STOP_WORDS if stop_words else frozenset()

  def make():
    _, edges = files(data_dir)
    try:
      library = PaperLibrary(
        _read_papers(path), _read_edges(edges), stop_words=words
      )
    except ValueError as error:
      named = str(path.parent) in str(error)
      raise error if named else ValueError(f"{path}: {error}") from error
    if not library.papers:
      raise ValueError(f"{path} holds no paper")
    if library.dropped:
      _LOG.warning("%s: left out %d edges to nowhere", edges, library.dropped)
    return library

  found = path.stat()
  key = (str(path.resolve()), found.st_mtime_ns, found.st_size, stop_words)
  return _COMMON.get(key, make)


def _read_papers(path) -> Iterator[retrieval_index.Document]:
  for where, record in files_lib.read_lines(path):
    yield retrieval_index.Document(
      files_lib.get_text(record, "paper_id", where),
      files_lib.get_text(record, "title", where, empty=True),
      files_lib.get_text(record, "abstract", where, empty=True),
    )


def _read_edges(path) -> Iterator[tuple[str, str]]:
  for where, record in files_lib.read_lines(path):
    paper = files_lib.get_text(record, "paper_id", where)
    key = "references" if "references" in record else "neighbours"
    others = files_lib.get_texts(record, key, where, least=0)
    yield from ((paper, other) for other in others)


def load_tasks(data_dir: str | pathlib.Path, split: str) -> list[types.Task]:
  """All queries of a split, in the order of the file.

  Args:
    data_dir: See the top of the module.
    split: What the queries' `split` says, such as "auto_test".

  Returns:
    Tasks of the environment "paper_search" whose family is the split. Their
    payload holds `question`, `answers` (ids of the papers to find), and where
    there are any `relevance` ({id: score}) and `hidden` (pairs of ids whose
    edge is left out).

  Raises:
    ValueError: a file or the split is missing, or a line is broken.
  """
  path = files_lib.needed(data_dir, "queries.jsonl")
  edges = files_lib.find(data_dir, _CITATIONS, _COCITATIONS)
  leaves_out = edges is not None and edges.name.startswith(_COCITATIONS)
  scores = _read_relevance(data_dir)
  support, queries = collections.Counter(), {}
  for where, record in files_lib.read_lines(path):
    qid = files_lib.get_text(record, "qid", where)
    if qid in queries:
      raise ValueError(f"{where}: a second query {qid!r}")
    answers = files_lib.get_texts(record, "answer_ids", where, least=1)
    question = files_lib.get_text(record, "question", where)
    answers = list(dict.fromkeys(answers))
    queries[qid] = (record.get("split"), question, answers)
    if leaves_out:
      support.update(_pairs(answers))
  unknown = sorted(set(scores) - set(queries))
  if unknown:
    raise ValueError(f"relevance.jsonl: there is no query {unknown[0]!r}")
  tasks = []
  for qid, (of, question, answers) in queries.items():
    if of != split:
      continue
    payload = {"question": question, "answers": answers}
    if qid in scores:
      payload["relevance"] = scores[qid]
    if leaves_out:
      own = [list(pair) for pair in _pairs(answers) if support[pair] == 1]
      payload["hidden"] = own
    tasks.append(types.Task(f"papers/{qid}", "paper_search", split, payload))
  if not tasks:
    splits = sorted({str(of) for of, _, _ in queries.values()})
    found = ", ".join(splits[:_MOST_LISTED]) or "none"
    raise ValueError(f"{path} has no split {split!r}; it has {found}")
  return tasks


def splits(data_dir: str | pathlib.Path) -> list[str]:
  """The splits of a folder's queries, in the order of the file.

  Raises:
    ValueError: the file is missing or a line is broken.
  """
  lines = files_lib.read_lines(files_lib.needed(data_dir, "queries.jsonl"))
  return list(dict.fromkeys(str(line.record.get("split")) for line in lines))


def files(data_dir: str | pathlib.Path) -> list[pathlib.Path]:
  """The files of the library that tasks of a folder refer to.

  Raises:
    ValueError: one is missing.
  """
  edges = files_lib.find(data_dir, _CITATIONS, _COCITATIONS)
  if edges is None:
    raise ValueError(
      f"data_dir {str(data_dir)!r} has no {_CITATIONS} or {_COCITATIONS}"
    )
  return [files_lib.needed(data_dir, *_PAPERS), edges]


def _pairs(answers):
  return list(itertools.combinations(sorted(answers), 2))


def _read_relevance(data_dir) -> dict[str, dict[str, float]]:
  path = files_lib.find(data_dir, "relevance.jsonl")
  scores: dict[str, dict[str, float]] = {}
  for where, record in files_lib.read_lines(path) if path else ():
    qid = files_lib.get_text(record, "qid", where)
    paper = files_lib.get_text(record, "paper_id", where)
    score = record.get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not number or not math.isfinite(score):
      raise ValueError(f"{where}: 'score' must be a number, got {score!r:.60}")
    scores.setdefault(qid, {})[paper] = float(score)
  return scores
