"""Readers of questions and corpora, published and broken ones."""

import gzip
import json
import lzma

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax import files
from steppo_jax.envs.questions import data as questions_data
from steppo_jax.envs.questions import env as questions_env

CORPUS = [
  {"id": "a", "title": "Big Fish", "text": "Directed by Tim Burton."},
  {"id": "b", "title": "Tim Burton", "text": "Born in Burbank."},
]
QUESTION = {
  "id": "musique:7",
  "dataset": "musique",
  "split": "train",
  "question": "Where was the director of Big Fish born?",
  "answers": ["Burbank"],
  "gold_ids": ["a", "b"],
}


def _write(folder, name, rows):
  folder.mkdir(exist_ok=True)
  lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
  (folder / name).write_text("\n".join(lines))
  return folder


@pytest.mark.slow
def test_the_real_questions_are_read(shared_dir):
  folder = shared_dir / "data" / "hotpotqa"
  if not folder.is_dir():
    pytest.skip(f"no folder {folder}")
  tasks = questions_data.load_tasks(folder, "validation")
  assert len(tasks) == 621
  assert {t.family for t in tasks} == {"hotpotqa", "2wikimultihopqa"}
  assert tasks[0].uid == "hotpotqa/5a7613c15542994ccc9186bf"
  assert len(questions_data.load_tasks(folder, "train")) == 200
  full = questions_data.load_tasks(folder, "dev_full")
  assert len(full) == 7_405 + 12_576 + 2_417
  corpus = questions_data.open_corpus(folder, stop_words=True)
  assert corpus is questions_data.open_corpus(folder, stop_words=True)
  env = questions_env.SearchQAEnv(data_dir=folder)
  env.reset(tasks[0], 0)
  assert "VIVA Media" in env.step("<search>VIVA Media</search>").observation
  # An oracle is right by every alias.
  for task in tasks[::7]:
    for answer in task.payload["answers"]:
      env.reset(task, 0)
      assert env.step(f"<answer>{answer}</answer>").info["won"]


HOTPOT = {
  "_id": "5ab",
  "question": "Where was the director of Big Fish born?",
  "answer": "Burbank",
  "supporting_facts": [["Big Fish", 0], ["Tim Burton", 1]],
  "context": [
    ["Big Fish", ["A film. ", " Directed by Tim Burton."]],
    ["Paris", ["A city."]],
    ["Tim Burton", ["Born in Burbank."]],
  ],
}
MUSIQUE = {
  "id": "2hop__1_2",
  "question": "Who?",
  "answer": "Tim",
  "answer_aliases": ["Tim Burton", "Tim"],
  "paragraphs": [
    {"title": "Paris", "paragraph_text": "A city.", "is_supporting": False},
    {"title": "Big", "paragraph_text": "By Tim.", "is_supporting": True},
  ],
}


def test_published_files_become_a_folder_of_ours(tmp_path):
  wiki = HOTPOT | {"_id": "w", "evidences": [], "answer_id": "Q1"}
  (tmp_path / "hotpot.json").write_text(json.dumps([HOTPOT]))
  (tmp_path / "wiki.json").write_text(json.dumps([wiki]))
  (tmp_path / "musique.jsonl").write_text(json.dumps(MUSIQUE) + "\n")
  aliases = {"Q_id": "Q1", "aliases": ["Burbank, California"]}
  (tmp_path / "aliases.json").write_text(json.dumps(aliases))
  names = ("hotpot.json", "wiki.json", "musique.jsonl")
  counts = questions_data.convert(
    [tmp_path / name for name in names],
    tmp_path / "out",
    split="dev",
    aliases=tmp_path / "aliases.json",
  )
  # Big Fish, Paris and Tim Burton, which two questions share, and Big.
  assert counts == (4, 3)
  tasks = questions_data.load_tasks(tmp_path / "out", "dev")
  assert [(t.uid, t.payload["answers"]) for t in tasks] == [
    ("hotpotqa/5ab", ["Burbank"]),
    ("2wikimultihopqa/w", ["Burbank", "Burbank, California"]),
    ("musique/2hop__1_2", ["Tim", "Tim Burton"]),
  ]
  documents = {d.id: d for d in questions_data.load_corpus(tmp_path / "out")}
  assert [
    [documents[id_].title for id_ in t.payload["gold_ids"]] for t in tasks
  ] == [["Big Fish", "Tim Burton"], ["Big Fish", "Tim Burton"], ["Big"]]
  assert documents[tasks[0].payload["gold_ids"][0]].text == (
    "A film. Directed by Tim Burton."
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[{}]", "record 0: no question of HotpotQA"),
    ("[1]", "record 0: no question of HotpotQA"),
    ("[", "x.json: not JSON"),
    ("{}", "line 1: no question of HotpotQA"),
    (json.dumps([HOTPOT | {"answer": 3}]), "record 0: no question"),
    (json.dumps([HOTPOT | {"context": [["a"]]}]), "record 0: no question"),
  ],
)
def test_broken_published_files_are_refused(text, message, tmp_path):
  (tmp_path / "x.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    questions_data.convert([tmp_path / "x.json"], tmp_path / "out", split="dev")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 2: not JSON"),
    ("[" * 100_000, "line 2: not JSON"),
    ("3", "line 2: expected a JSON object"),
    ({"title": "t", "text": "x"}, "line 2: 'id' must be a string, got None"),
    ({"id": "", "text": "x"}, "line 2: 'id' must be a string, got ''"),
    ({"id": "c", "title": ["t"]}, "line 2: 'title' must be a string"),
    ({"id": "c", "text": "\ud800"}, "line 2: 'text' is not valid Unicode"),
    (CORPUS[0], "two documents have the id 'a'"),
  ],
)
def test_a_broken_corpus_is_refused_by_line(line, message, tmp_path):
  folder = _write(tmp_path / "d", "corpus.jsonl", [CORPUS[0], line])
  with pytest.raises(ValueError, match=message) as error:
    questions_data.open_corpus(folder, stop_words=True)
  assert "corpus.jsonl" in str(error.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"answers": []}, "'answers' must be a list of at least 1"),
    ({"answers": "Burbank"}, "'answers' must be a list"),
    ({"answers": [None]}, "'answers' must be a string"),
    ({"question": " "}, "'question' must be a string"),
    ({"gold_ids": [3]}, "'gold_ids' must be a string"),
    ({"id": "7"}, "a second question 'musique/7'"),
    ({"split": "dev", "id": "8", "dataset": 3}, None),
  ],
)
def test_a_broken_question_is_refused_by_line(change, message, tmp_path):
  rows = [QUESTION, QUESTION | change]
  folder = _write(tmp_path / "d", "questions.jsonl", rows)
  if message is None:
    # What another split holds is its own affair.
    assert len(questions_data.load_tasks(folder, "train")) == 1
    return
  with pytest.raises(ValueError, match=f"questions.jsonl, line 2: {message}"):
    questions_data.load_tasks(folder, "train")


def test_missing_files_and_splits_are_named(tmp_path):
  with pytest.raises(ValueError, match="is not a folder"):
    questions_data.load_tasks(tmp_path / "no", "train")
  with pytest.raises(ValueError, match=r"has no questions.jsonl or questions_"):
    questions_data.load_tasks(tmp_path, "train")
  with pytest.raises(ValueError, match=r"has no corpus.jsonl"):
    questions_data.open_corpus(tmp_path, stop_words=True)
  _write(tmp_path, "questions.jsonl", [QUESTION])
  with pytest.raises(ValueError, match="has no split 'test'; it has train"):
    questions_data.load_tasks(tmp_path, "test")
  _write(tmp_path, "corpus.jsonl", ["", " "])
  with pytest.raises(ValueError, match="holds no paragraph"):
    questions_data.open_corpus(tmp_path, stop_words=True)


def _gzip(data):
  # With the time in it, the workers would name the tests differently.
  return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
  ("name", "data", "message"),
  [
    ("corpus.jsonl", b"\xff\xfe{", "is not UTF-8"),
    ("corpus.jsonl.gz", b"no gzip", "is no whole .gz file"),
    ("corpus.jsonl.gz", _gzip(b"{}" * 999)[:-9], "no whole .gz file"),
    ("corpus.jsonl.xz", b"no xz", "is no whole .xz file"),
    ("corpus.jsonl.xz", lzma.compress(b"{}" * 999)[:-9], "no whole .xz file"),
    ("corpus.jsonl.gz", _gzip(b"\xff"), "is not UTF-8"),
  ],
)
def test_broken_files_are_refused_by_name(name, data, message, tmp_path):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=message) as error:
    questions_data.open_corpus(tmp_path, stop_words=True)
  assert name in str(error.value)


def test_a_corpus_that_was_written_anew_is_read_anew(tmp_path):
  folder = _write(tmp_path / "d", "corpus.jsonl", CORPUS[:1])
  assert len(questions_data.open_corpus(folder, stop_words=True).documents) == 1
  _write(folder, "corpus.jsonl", CORPUS)
  assert len(questions_data.open_corpus(folder, stop_words=True).documents) == 2


def _refusal(read):
  try:
    read()
  except ValueError as error:
    return str(error)
  return None


_JSON = st.recursive(
  st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=8)),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(
      st.sampled_from(["id", "title", "text", "answers", "split", "question"]),
      inner,
      max_size=6,
    ),
  ),
  max_leaves=12,
)


@hypothesis.given(
  st.lists(st.one_of(_JSON.map(json.dumps).map(str.encode), st.binary()))
)
def test_any_bytes_are_read_or_refused_with_the_name(tmp_path_factory, lines):
  folder = tmp_path_factory.mktemp("any")
  for name in ("corpus.jsonl", "questions.jsonl", "x.json"):
    (folder / name).write_bytes(b"\n".join(lines))
  for read in (
    lambda: questions_data.open_corpus(folder, stop_words=True),
    lambda: questions_data.load_tasks(folder, "train"),
    lambda: questions_data.convert(
      [folder / "x.json"], folder / "out", split="dev"
    ),
    lambda: list(files.read_lines(folder / "corpus.jsonl")),
  ):
    error = _refusal(read)
    assert error is None or str(folder) in error
