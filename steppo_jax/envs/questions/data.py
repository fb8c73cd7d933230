"""Reads corpora and questions of HotpotQA, 2WikiMultihopQA and MuSiQue.

A folder holds, as they are or packed with gzip or xz:

    corpus.jsonl                      {"id", "title", "text"}
    questions.jsonl                   {"id", "dataset", "split", "question",
      or questions_with_corpus.jsonl   "answers", "gold_ids"}
    dev_questions_full.jsonl          the same without split and gold_ids

`convert` makes such a folder of the files that the data sets' authors publish.
"""

import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from steppo_jax import files as files_lib
from steppo_jax import types
from steppo_jax.envs.retrieval import fts
from steppo_jax.envs.retrieval import index as retrieval_index

# The split whose questions have no gold paragraphs, and its file.
FULL = "dev_full"
_FULL_FILE = "dev_questions_full.jsonl"
_FILES = ("questions.jsonl", "questions_with_corpus.jsonl")
_MOST_LISTED = 8
_COMMON = retrieval_index.Shared(size=4)


def stop_words(use: bool) -> frozenset[str]:
  """The words that are left out."""
  return retrieval_index.STOP_WORDS if use else frozenset()


def load_corpus(
  data_dir: str | pathlib.Path,
) -> Iterator[retrieval_index.Document]:
  """The paragraphs of a folder, one at a time.

  Raises:
    ValueError: the folder or the file is missing, or a line is broken; the
      message names it.
  """
  path = files_lib.needed(data_dir, "corpus.jsonl")
  count = 0
  for where, record in files_lib.read_lines(path):
    count += 1
    yield retrieval_index.Document(
      files_lib.get_text(record, "id", where),
      files_lib.get_text(record, "title", where, empty=True),
      files_lib.get_text(record, "text", where, empty=True),
    )
  if not count:
    raise ValueError(f"{path} holds no paragraph")


def open_corpus(
  data_dir: str | pathlib.Path, *, stop_words: bool
) -> retrieval_index.Corpus:
  """The corpus of a folder in memory, read once a process.

  Raises:
    ValueError: see `load_corpus`.
  """
  path = files_lib.needed(data_dir, "corpus.jsonl").resolve()
  words = retrieval_index.STOP_WORDS if stop_words else frozenset()

  def make():
    try:
      return retrieval_index.in_memory(load_corpus(data_dir), stop_words=words)
    except ValueError as error:
      raise _named(error, path) from error

  return _COMMON.get((*_identity(path), stop_words), make)


def open_index(path: str | pathlib.Path) -> retrieval_index.Corpus:
  """The corpus of an index on disk, opened once a process.

  Raises:
    ValueError: see `retrieval.fts.open_corpus`.
  """
  path = pathlib.Path(path).expanduser().absolute()
  if not path.is_file():
    raise ValueError(f"index {path} is missing; build it with search_fts.build")
  return _COMMON.get(_identity(path), lambda: fts.open_corpus(path))


def _identity(path):
  """A file that was written anew is another file."""
  found = os.stat(path)
  return str(path), found.st_mtime_ns, found.st_size


def _named(error, path):
  text = str(error)
  return ValueError(text if str(path) in text else f"{path}: {text}")


def load_tasks(data_dir: str | pathlib.Path, split: str) -> list[types.Task]:
  """All questions of a split, in the order of the file.

  Args:
    data_dir: See the top of the module.
    split: What the questions' `split` says, such as "train" or "validation",
      or "dev_full" for the questions without gold paragraphs.

  Returns:
    Tasks of the environment "search_qa" whose family is their data set.

  Raises:
    ValueError: a file or the split is missing, or a line is broken.
  """
  if split == FULL:
    path = files_lib.needed(data_dir, _FULL_FILE)
  else:
    path = files_lib.needed(data_dir, *_FILES)
  tasks, seen, splits = [], set(), set()
  for where, record in files_lib.read_lines(path):
    splits.add(str(record.get("split")))
    if split not in (FULL, record.get("split")):
      continue
    task = _task(record, where)
    if task.uid in seen:
      raise ValueError(f"{where}: a second question {task.uid!r}")
    seen.add(task.uid)
    tasks.append(task)
  if not tasks:
    found = ", ".join(sorted(splits)[:_MOST_LISTED]) or "none"
    raise ValueError(f"{path} has no split {split!r}; it has {found}")
  return tasks


def splits(data_dir: str | pathlib.Path) -> list[str]:
  """The splits of a folder's questions, in the order of the file.

  Raises:
    ValueError: the file is missing or a line is broken.
  """
  lines = files_lib.read_lines(files_lib.needed(data_dir, *_FILES))
  found = dict.fromkeys(str(line.record.get("split")) for line in lines)
  full = files_lib.find(data_dir, _FULL_FILE)
  return [*found, FULL] if full else list(found)


def files(data_dir: str | pathlib.Path) -> list[pathlib.Path]:
  """The files that tasks without paragraphs of their own refer to.

  Raises:
    ValueError: one is missing.
  """
  return [files_lib.needed(data_dir, "corpus.jsonl")]


def _task(record, where):
  get = files_lib.get_text
  dataset = get(record, "dataset", where)
  payload = {
    "question": get(record, "question", where),
    "answers": list(files_lib.get_texts(record, "answers", where, least=1)),
  }
  if record.get("gold_ids") is not None:
    payload["gold_ids"] = list(
      files_lib.get_texts(record, "gold_ids", where, least=0)
    )
  id_ = get(record, "id", where).removeprefix(f"{dataset}:")
  return types.Task(f"{dataset}/{id_}", "search_qa", dataset, payload)


class Question(NamedTuple):
  """A published question with the paragraphs that come with it.

  Attributes:
    record: A line of `questions.jsonl`.
    documents: Its paragraphs, distractors included.
  """

  record: dict[str, Any]
  documents: Sequence[retrieval_index.Document]


def convert(
  paths: Sequence[str | pathlib.Path],
  data_dir: str | pathlib.Path,
  *,
  split: str,
  aliases: str | pathlib.Path | None = None,
) -> tuple[int, int]:
  """Writes `corpus.jsonl.gz` and `questions.jsonl.gz` from published files.

  Args:
    paths: HotpotQA's and 2WikiMultihopQA's JSON files or MuSiQue's JSON lines,
      told apart by their keys. The corpus is the union of all paragraphs.
    data_dir: Folder to write to; it is made.
    split: Written into the questions.
    aliases: 2WikiMultihopQA's `id_aliases.json`, JSON lines of `Q_id` and
      `aliases`.

  Returns:
    Number of paragraphs and of questions.

  Raises:
    ValueError: a file is missing or a record is broken; the message names it.
  """
  known = _read_aliases(aliases) if aliases is not None else {}
  documents: dict[str, retrieval_index.Document] = {}
  records = []
  for path in paths:
    for question in read_published(path, split=split, aliases=known):
      documents.update((d.id, d) for d in question.documents)
      records.append(question.record)
  folder = pathlib.Path(data_dir)
  folder.mkdir(parents=True, exist_ok=True)
  corpus = [document._asdict() for document in documents.values()]
  for name, rows in (("corpus", corpus), ("questions", records)):
    with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
      file.writelines(
        json.dumps(row, ensure_ascii=False) + "\n" for row in rows
      )
  return len(corpus), len(records)


def read_published(
  path: str | pathlib.Path,
  *,
  split: str,
  aliases: Mapping[str, Sequence[str]],
) -> Iterator[Question]:
  """The questions of one published file; see `convert`.

  Raises:
    ValueError: the file is missing or a record is broken.
  """
  path = pathlib.Path(path)
  text = files_lib.text_of(path)
  if text.lstrip().startswith("["):
    try:
      records = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path}: not JSON ({error})") from error
    rows = [(f"{path}, record {n}", r) for n, r in enumerate(records)]
  else:
    rows = [tuple(line) for line in files_lib.read_lines(path)]
  for where, record in rows:
    try:
      read = _read_musique if "paragraphs" in record else _read_context
      yield read(record, split, aliases)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ValueError(
        f"{where}: no question of HotpotQA, 2WikiMultihopQA or MuSiQue "
        f"({error!r})"
      ) from error


def _read_context(record, split, aliases):
  """HotpotQA and 2WikiMultihopQA: titles with lists of sentences."""
  gold = {title for title, _ in record["supporting_facts"]}
  documents = [
    _document(title, " ".join(s.strip() for s in sentences))
    for title, sentences in record["context"]
  ]
  dataset = "2wikimultihopqa" if "evidences" in record else "hotpotqa"
  answers = [record["answer"], *aliases.get(record.get("answer_id"), ())]
  return _question(
    dataset,
    record["_id"],
    split,
    record["question"],
    answers,
    [(document, document.title in gold) for document in documents],
  )


def _read_musique(record, split, aliases):
  del aliases
  paragraphs = [
    (_document(p["title"], p["paragraph_text"]), p["is_supporting"])
    for p in record["paragraphs"]
  ]
  answers = [record["answer"], *record["answer_aliases"]]
  return _question(
    "musique", record["id"], split, record["question"], answers, paragraphs
  )


def _question(dataset, id_, split, question, answers, paragraphs):
  record = {
    "id": id_,
    "dataset": dataset,
    "split": split,
    "question": question,
    "answers": list(dict.fromkeys(answers)),
    "gold_ids": [document.id for document, gold in paragraphs if gold],
  }
  _task(record, "question")
  return Question(record, [document for document, _ in paragraphs])


def _document(title, text):
  """Paragraphs of several questions are one if title and text are."""
  digest = hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()
  return retrieval_index.Document(digest[:16], title, text)


def _read_aliases(path):
  return {
    files_lib.get_text(record, "Q_id", where): files_lib.get_texts(
      record, "aliases", where, least=0
    )
    for where, record in files_lib.read_lines(path)
  }
