"""Paper search: find the papers that answer a query, by search and citation."""

import hashlib
import math
import pathlib
from collections.abc import Callable

from steppo_jax import types
from steppo_jax.envs import calls as envs_calls
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.papers import scores as papers_scores
from steppo_jax.envs.papers import service as papers_service
from steppo_jax.envs.retrieval import index as retrieval_index

TOOLS = {"search": "query", "expand": "paper_id", "answer": "answer"}
INVALID = (
  "Invalid call. Write <search>words</search>, <expand>id</expand> or "
  "<answer>done</answer>."
)
NOTHING_NEW = "No new papers."
REPEATED = "This query was searched before."
NOT_FOUND_YET = "Only papers that were found can be expanded."
EXPANDED = "This paper was expanded before."
MORE_CALLS = "Only the first {} calls of a step are run."
MORE_PAPERS = "and {} more"

# Gives the relevance of a paper to a question, usually in [0, 1].
Selector = Callable[[str, retrieval_index.Document], float]


class PaperSearchEnv:
  """Queries for papers as a `types.Env`.

  A step runs up to `calls` calls: `search` adds papers to those found,
  `expand` adds what a found paper cites or is cited by, and `answer` ends the
  episode. The reward of a step is the sum of the `best` highest scores of its
  new papers, less `refusal_penalty` for every query that was searched before
  and every paper that is expanded again or was not found yet. A step without a
  call that can be understood says `INVALID` and costs `invalid_penalty`. The
  episode is won while `won_recall` of the answers are found. Limits on steps
  are the caller's (5 in the paper).

  Args:
    data_dir: Folder of the library of tasks that bring no papers; see
      `papers.library`.
    service: Address of a paper service in place of `data_dir`; see
      `papers.service`.
    service_timeout_s: Seconds that one request to it may take.
    library: What is searched, in place of both.
    selector: Scores a paper for the question; by default the task's table
      `relevance` does, where answers have 1.0 and all others 0.0 if it does
      not list them.
    keep_from: Papers with a lower score are not added (public code, whose
      selector is a language model, has 0.01).
    top: Papers that a search returns.
    calls: Calls that one step may make.
    best: How many new scores a step is rewarded with.
    reward_each_call: Whether every call, instead of every step, is rewarded
      with its `best` scores (as in public code).
    refusal_penalty: For a repeated query or a bad expand, at least 0.
    invalid_penalty: For a step with an invalid call, at least 0.
    won_recall: Share of the answers that wins, in (0, 1].
    shown: Most papers that an observation lists for one call.
    show_scores: Whether it tells their scores.
    strict: Whether calls must be written exactly; see `envs.calls.parse`.

  Raises:
    ValueError: an argument is out of range, or the library cannot be read.
  """

  def __init__(
    self,
    *,
    data_dir: str | pathlib.Path | None = None,
    service: str | None = None,
    service_timeout_s: float = 10.0,
    library: papers_library.Library | None = None,
    selector: Selector | None = None,
    keep_from: float = 0.0,
    top: int = 10,
    calls: int = 5,
    best: int = 3,
    reward_each_call: bool = False,
    refusal_penalty: float = 0.5,
    invalid_penalty: float = 0.0,
    won_recall: float = 1.0,
    shown: int = 20,
    show_scores: bool = True,
    strict: bool = False,
  ):
    for name, value in (
      ("top", top), ("calls", calls), ("best", best), ("shown", shown),
    ):  # fmt: skip
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in (
      ("refusal_penalty", refusal_penalty), ("invalid_penalty", invalid_penalty)
    ):  # fmt: skip
      if not value >= 0.0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    if not 0.0 < won_recall <= 1.0:
      raise ValueError(f"won_recall must be in (0, 1], got {won_recall}")
    if math.isnan(keep_from):
      raise ValueError("keep_from must be a number")
    if library is None and service is not None:
      library = papers_service.RemoteLibrary(
        service, timeout_s=service_timeout_s
      )
    elif library is None and data_dir is not None:
      library = papers_library.open_library(data_dir)
    self._common, self._selector, self._keep_from = library, selector, keep_from
    self._top, self._calls, self._best = top, calls, best
    self._each_call, self._refusal = reward_each_call, refusal_penalty
    self._penalty, self._won_recall = invalid_penalty, won_recall
    self._shown, self._show_scores, self._strict = shown, show_scores, strict
    self.close()

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task; the seed is not used, nothing is drawn at random.

    Raises:
      ValueError: the task is none of paper search, or needs a library that
        this environment does not have.
    """
    del seed
    self._load(task.uid, task.payload)
    shown = f"Your task is to: find papers. {self._question}"
    return self._time_step(shown, 0.0, invalid=False)

  def _load(self, name, payload):
    try:
      question, answers = payload["question"], frozenset(payload["answers"])
      relevance = dict.fromkeys(answers, 1.0) | dict(
        payload.get("relevance", {})
      )
      hidden = {frozenset(pair) for pair in payload.get("hidden", ())}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ValueError(
        f"task {name}: a paper_search payload needs 'question' and 'answers' "
        f"({error})"
      ) from error
    if not isinstance(question, str) or not answers:
      raise ValueError(f"task {name}: expected a question and its answers")
    library = self._common
    if "papers" in payload:
      try:
        library = papers_library.from_payload(payload)
      except ValueError as error:
        raise ValueError(f"task {name}: {error}") from error
    if library is None:
      raise ValueError(
        f"task {name} brings no papers: set data_dir or service to a library"
      )
    self._payload, self._question, self._answers = payload, question, answers
    self._relevance, self._hidden = relevance, hidden
    self._library, self._done = library, False
    self._pool: dict[str, float] = {}
    self._expanded: dict[str, None] = {}
    self._queries: dict[str, None] = {}

  def step(self, text: str) -> types.TimeStep:
    """Runs the calls in a text; a step that fails changes nothing.

    Raises:
      RuntimeError: no task was started, the episode has ended, or the service
        or the selector failed.
    """
    if self._payload is None:
      raise RuntimeError("call reset(task, seed) before step")
    if self._done:
      raise RuntimeError("the episode has ended: call reset(task, seed)")
    before = dict(self._pool), dict(self._expanded), dict(self._queries)
    try:
      return self._step(text)
    except Exception:
      self._pool, self._expanded, self._queries = before
      self._done = False
      raise

  def _step(self, text):
    calls = envs_calls.parse(
      text, TOOLS, most=self._calls + 1, strict=self._strict
    )
    if not calls:
      return self._time_step(INVALID, 0.0 - self._penalty, invalid=True)
    parts, scores, reward, refused = [], [], 0.0, False
    for call in calls[: self._calls]:
      if call.name == "answer":
        self._done = True
        parts.append("The episode is over.")
        break
      if call.name is None:
        parts.append(INVALID)
        continue
      found, complaint = self._found(call)
      if complaint is not None:
        parts.append(complaint)
        reward, refused = reward - self._refusal, True
        continue
      new = self._add(found)
      parts.append(self._listed(new))
      scores.append([self._pool[paper.id] for paper in new])
    if len(calls) > self._calls and not self._done:
      parts.append(MORE_CALLS.format(self._calls))
    if not self._each_call:
      scores = [[score for of_call in scores for score in of_call]]
    for of_call in scores:
      reward += sum(sorted(of_call, reverse=True)[: self._best])
    invalid = any(call.name is None for call in calls)
    if invalid:
      reward -= self._penalty
    return self._time_step(
      "\n\n".join(parts), reward, invalid=invalid or refused
    )

  def _found(self, call):
    """Papers that a call leads to, or why it is refused."""
    if call.name == "search":
      query = " ".join(retrieval_index.query_words(call.argument))
      if query in self._queries:
        return [], REPEATED
      found = self._library.search(query, self._top)
      self._queries[query] = None
      return found, None
    paper = call.argument
    if paper not in self._pool:
      return [], NOT_FOUND_YET
    if paper in self._expanded:
      return [], EXPANDED
    found = self._library.expand(paper)
    self._expanded[paper] = None
    return [
      other for other in found
      if not self._hidden or frozenset((paper, other.id)) not in self._hidden
    ], None  # fmt: skip

  def _add(self, found):
    new = []
    for paper in found:
      if paper.id in self._pool:
        continue
      score = self._score(paper)
      if score >= self._keep_from:
        self._pool[paper.id] = score
        new.append(paper)
    return new

  def _score(self, paper) -> float:
    if self._selector is None:
      return self._relevance.get(paper.id, 0.0)
    score = float(self._selector(self._question, paper))
    if not math.isfinite(score):
      raise RuntimeError(f"the selector gave {score} to paper {paper.id!r}")
    return score

  def _listed(self, new) -> str:
    ranked = sorted(new, key=lambda paper: -self._pool[paper.id])
    lines = []
    for paper in ranked[: self._shown]:
      score = f" ({self._pool[paper.id]:.2f})" if self._show_scores else ""
      lines.append(f"[{paper.id}]{score} {paper.title}")
    if len(ranked) > self._shown:
      lines.append(MORE_PAPERS.format(len(ranked) - self._shown))
    return "\n".join(lines) or NOTHING_NEW

  def ranked(self) -> list[str]:
    """Ids of the papers found, by score, then by when they were found."""
    return sorted(self._pool, key=lambda id_: -self._pool[id_])

  def _time_step(self, observation, reward, *, invalid):
    scores = papers_scores.table(self.ranked(), self._answers)
    info = {
      "won": scores["recall@all"] >= self._won_recall,
      "invalid": invalid,
      "anchor": self.anchor(),
      "scores": scores,
    }
    return types.TimeStep(observation, reward, self._done, False, info)

  def anchor(self) -> str:
    """What was found and expanded, in any order, and whether it is over."""
    state = f"{sorted(self._pool)} {sorted(self._expanded)} {self._done}"
    digest = hashlib.sha256(state.encode("utf-8", "backslashreplace"))
    return (
      f"{len(self._pool)} papers, {len(self._expanded)} expanded, "
      f"{digest.hexdigest()[:16]}"
    )

  def close(self) -> None:
    """Forgets the task, and closes what it has with a service."""
    self._payload = self._library = None
    self._done, self._pool = False, {}
    self._expanded, self._queries = {}, {}
    if isinstance(self._common, papers_service.RemoteLibrary):
      self._common.close()
