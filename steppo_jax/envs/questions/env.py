"""Multi-hop question answering: search paragraphs, then answer."""

import pathlib

from steppo_jax import types
from steppo_jax.envs import calls as envs_calls
from steppo_jax.envs.questions import data, scoring
from steppo_jax.envs.retrieval import index as retrieval_index

TOOLS = {"search": "query", "answer": "answer"}
REWARDS = ("exact_match", "f1")
INVALID = (
  "Invalid call. Write <search>words</search> or <answer>words</answer>."
)
NOTHING_FOUND = "Nothing found."
MORE_CALLS = "Only the first {} searches of a step are run."

# The corpora of generated questions, which all members of a group read.
_OWN = retrieval_index.Shared(size=64)


class SearchQAEnv:
  """Questions over a corpus as a `types.Env`.

  A step runs up to `searches` calls of `search`, and an `answer` ends the
  episode; see `envs.calls` for how they are written. An answer that matches
  wins. A step without a call that can be understood, or with two answers, says
  `INVALID` and costs `invalid_penalty`. Limits on steps are the caller's (5 in
  the paper).

  Args:
    data_dir: Folder with the corpus of tasks that bring no paragraphs; see
      `questions.data`.
    index: File of an index on disk (`retrieval.fts`) in place of `data_dir`.
    corpus: What is searched, in place of both.
    top: Paragraphs that a search returns.
    searches: Searches that one step may run.
    reward: Of an answer: "exact_match" (as in the paper) or "f1".
    invalid_penalty: Subtracted for a step with an invalid call, at least 0.
    strict: Whether calls must be written exactly; see `envs.calls.parse`.
    search_first: Whether the first observation shows what a search for the
      question finds (as public code does).
    stop_words: Whether function words are left out of a corpus in memory.
    shown_chars: Characters of a paragraph that are shown; None for all.

  Raises:
    ValueError: an argument is out of range, or the corpus cannot be read.
  """

  def __init__(
    self,
    *,
    data_dir: str | pathlib.Path | None = None,
    index: str | pathlib.Path | None = None,
    corpus: retrieval_index.Corpus | None = None,
    top: int = 5,
    searches: int = 4,
    reward: str = "exact_match",
    invalid_penalty: float = 0.0,
    strict: bool = False,
    search_first: bool = False,
    stop_words: bool = True,
    shown_chars: int | None = None,
  ):
    for name, value in (("top", top), ("searches", searches)):
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if reward not in REWARDS:
      raise ValueError(
        f"reward must be one of {', '.join(REWARDS)}, got {reward!r}"
      )
    if not invalid_penalty >= 0.0:
      raise ValueError(
        f"invalid_penalty must be at least 0, got {invalid_penalty}"
      )
    if shown_chars is not None and shown_chars < 1:
      raise ValueError(f"shown_chars must be at least 1, got {shown_chars}")
    self._top, self._searches, self._reward = top, searches, reward
    self._penalty, self._strict = invalid_penalty, strict
    self._search_first, self._shown_chars = search_first, shown_chars
    self._stop_words = stop_words
    if corpus is None and index is not None:
      corpus = data.open_index(index)
    elif corpus is None and data_dir is not None:
      corpus = data.open_corpus(data_dir, stop_words=stop_words)
    self._common = corpus
    self.close()

  def reset(self, task: types.Task, seed: int) -> types.TimeStep:
    """Starts a task; the seed is not used, nothing is drawn at random.

    Raises:
      ValueError: the task is none of multi-hop questions, or needs a corpus
        that this environment does not have.
    """
    del seed
    self._load(task.uid, task.payload)
    shown = f"Your task is to: answer the question. {self._question}"
    if self._search_first:
      shown = f"{self._search(self._question)}\n\n{shown}"
    return self._time_step(shown, 0.0, invalid=False)

  def _load(self, name, payload):
    try:
      question, answers = payload["question"], payload["answers"]
      own = payload.get("paragraphs")
    except (KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"task {name}: a search_qa payload needs 'question' and 'answers' "
        f"({error})"
      ) from error
    if not isinstance(question, str) or not _are_texts(answers) or not answers:
      raise ValueError(
        f"task {name}: expected a question and a list of answers"
      )
    if own is not None:
      corpus = self._own_corpus(name, own)
    elif self._common is None:
      raise ValueError(
        f"task {name} brings no paragraphs: set data_dir or index to a corpus"
      )
    else:
      corpus = self._common
    self._payload, self._question, self._golds = payload, question, answers
    self._corpus, self._seen, self._scores = corpus, {}, None

  def _own_corpus(self, name, own):
    try:
      documents = tuple(retrieval_index.Document(*row) for row in own)
    except TypeError:
      documents = ((None,),)
    if not all(_are_texts(document) for document in documents):
      raise ValueError(f"task {name}: a paragraph is not [id, title, text]")
    stop = data.stop_words(self._stop_words)
    try:
      return _OWN.get(
        (documents, self._stop_words),
        lambda: retrieval_index.in_memory(documents, stop_words=stop),
      )
    except ValueError as error:
      raise ValueError(f"task {name}: {error}") from error

  def step(self, text: str) -> types.TimeStep:
    """Runs the calls in a text.

    Raises:
      RuntimeError: no task was started, the episode has ended, or the index
        cannot be read any more.
    """
    if self._payload is None:
      raise RuntimeError("call reset(task, seed) before step")
    if self._scores is not None:
      raise RuntimeError("the episode has ended: call reset(task, seed)")
    calls = envs_calls.parse(
      text, TOOLS, most=self._searches + 1, strict=self._strict
    )
    answers = [call.argument for call in calls if call.name == "answer"]
    if not calls or len(answers) > 1:
      return self._time_step(INVALID, 0.0 - self._penalty, invalid=True)
    invalid = any(call.name is None for call in calls)
    reward = 0.0 - self._penalty if invalid else 0.0
    if answers:
      return self._answer(answers[0], reward, invalid)
    parts = [
      self._search(call.argument) if call.name else INVALID
      for call in calls[: self._searches]
    ]
    if len(calls) > self._searches:
      parts.append(MORE_CALLS.format(self._searches))
    return self._time_step("\n\n".join(parts), reward, invalid=invalid)

  def _answer(self, answer, reward, invalid):
    self._scores = {
      "exact_match": scoring.exact_match(answer, self._golds),
      "f1": scoring.f1(answer, self._golds),
    }
    reward += self._scores[self._reward]
    return self._time_step("The episode is over.", reward, invalid=invalid)

  def _search(self, query):
    hits = self._corpus.retriever.search(query, self._top)
    lines = []
    for hit in hits:
      document = self._corpus.documents[hit.id]
      self._seen[hit.id] = None
      lines.append(_shown(document)[: self._shown_chars])
    return "\n".join(lines) or NOTHING_FOUND

  def _time_step(self, observation, reward, *, invalid):
    done = self._scores is not None
    scores = self._scores or dict.fromkeys(REWARDS, 0.0)
    info = {
      "won": scores["exact_match"] == 1.0,
      "invalid": invalid,
      "anchor": self.anchor(),
      "scores": dict(scores),
    }
    return types.TimeStep(observation, reward, done, False, info)

  def anchor(self) -> str:
    """Which paragraphs were read, in any order, and whether it is over."""
    state = "answered" if self._scores is not None else "open"
    return " ".join([f"{state}, read:", *sorted(self._seen)])

  def close(self) -> None:
    """Forgets the task."""
    self._payload = self._corpus = self._scores = None
    self._seen = {}


def _shown(document) -> str:
  """Title and text; the title once where the text begins with it."""
  if document.text.startswith(document.title):
    return document.text
  return f"{document.title}: {document.text}"


def _are_texts(values) -> bool:
  return isinstance(values, list | tuple) and all(
    isinstance(value, str) for value in values
  )
