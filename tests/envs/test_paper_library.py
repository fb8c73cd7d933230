"""Papers, citations and queries from files, real and broken; worlds."""

import gzip
import json

import hypothesis
import hypothesis.strategies as st
import pytest
from marks import some

from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.papers import worlds as papers_worlds

PAPERS = [
  {"paper_id": "a", "title": "Sparse attention", "abstract": "For parsing."},
  {"paper_id": "b", "title": "Notes", "year": 2007},
  {"paper_id": "c", "title": "More notes"},
]
EDGES = [
  {"paper_id": "a", "neighbours": ["b", "zz"]},
  {"paper_id": "b", "neighbours": ["a", "c"]},
]
QUERIES = [
  {"qid": "q1", "split": "s", "question": "x?", "answer_ids": ["b", "a"]},
  {"qid": "q2", "split": "s", "question": "y?", "answer_ids": ["c", "a", "b"]},
  {"qid": "q3", "split": "t", "question": "z?", "answer_ids": ["b", "c"]},
]


def _write(folder, **files):
  folder.mkdir(exist_ok=True)
  for name, rows in files.items():
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
  return folder


def _folder(tmp_path, **files):
  parts = {"papers": PAPERS, "cocitation_edges": EDGES, "queries": QUERIES}
  return _write(tmp_path / "p", **(parts | files))


@pytest.fixture(scope="module")
def real(shared_dir):
  folder = shared_dir / "data" / "paper_search"
  if not folder.is_dir():
    pytest.skip(f"no folder {folder}")
  return folder


@pytest.mark.slow
def test_recall_on_the_test_queries_is_the_known_one(real):
  env = papers_env.PaperSearchEnv(data_dir=real)
  tasks = papers_library.load_tasks(real, "auto_test")
  assert len(tasks) == 1000
  searched = expanded = 0.0
  for task in tasks:
    env.reset(task, 0)
    step = env.step(f"<search>{task.payload['question']}</search>")
    searched += step.info["scores"]["recall@all"]
    for paper in env.ranked():
      step = env.step(f"<expand>{paper}</expand>")
    expanded += step.info["scores"]["recall@all"]
  # Known from a feasibility study with other words left out: about 0.30 for
  # the first ten and about 0.38 with all that is co-cited with these.
  assert searched / 1000 == pytest.approx(0.30, abs=0.025)
  assert expanded / 1000 == pytest.approx(0.38, abs=0.025)


def test_edges_of_the_query_itself_would_tell_its_answers(real):
  tasks = papers_library.load_tasks(real, "real_test")
  library = papers_library.open_library(real)
  assert len(tasks) == 50
  told = kept = 0
  for task in tasks:
    answers = set(task.payload["answers"])
    hidden = {frozenset(pair) for pair in task.payload["hidden"]}
    for answer in answers:
      others = {paper.id for paper in library.expand(answer)} & answers
      told += len(others)
      kept += sum(frozenset((answer, o)) not in hidden for o in others)
  # These queries share next to no pair of answers with any other.
  assert told > 1000
  assert kept < 0.05 * told


def test_an_edge_stays_where_another_query_stands_for_it(tmp_path):
  folder = _folder(tmp_path)
  one, two = papers_library.load_tasks(folder, "s")
  # a-b is in q1 and q2, b-c in q2 and q3, a-c in q2 alone.
  assert one.payload["hidden"] == []
  assert two.payload["hidden"] == [["a", "c"]]
  assert two.payload["answers"] == ["c", "a", "b"]
  assert (one.uid, one.family, one.env) == ("papers/q1", "s", "paper_search")
  # True citations are not made of queries: nothing is hidden.
  citations = [{"paper_id": "a", "references": ["b"]}]
  _write(folder, citations=citations)
  assert "hidden" not in papers_library.load_tasks(folder, "s")[0].payload


def test_a_library_is_read_once_and_edges_to_nowhere_are_told(tmp_path, caplog):
  folder = _folder(tmp_path)
  library = papers_library.open_library(folder)
  assert library is papers_library.open_library(folder)
  assert library.dropped == 1
  assert "left out 1 edges to nowhere" in caplog.text
  assert [paper.id for paper in library.expand("b")] == ["a", "c"]
  assert [paper.id for paper in library.search("parsing notes", 5)] == [
    "a", "b", "c",
  ]  # fmt: skip


def test_a_table_of_relevance_is_part_of_the_task(tmp_path):
  rows = [{"qid": "q1", "paper_id": "c", "score": 0.5}]
  folder = _folder(tmp_path, relevance=rows)
  one, two = papers_library.load_tasks(folder, "s")
  assert one.payload["relevance"] == {"c": 0.5}
  assert "relevance" not in two.payload
  env = papers_env.PaperSearchEnv(data_dir=folder)
  env.reset(one, 0)
  assert env.step("<search>notes</search>").reward == 1.5


@pytest.mark.parametrize(
  ("name", "line", "message"),
  [
    ("papers", "{", "line 1: not JSON"),
    ("papers", {"title": "x"}, "line 1: 'paper_id' must be a string"),
    ("papers", {"paper_id": 7}, "line 1: 'paper_id' must be a string, got 7"),
    ("papers", {"paper_id": "x", "title": 7}, "'title' must be a string"),
    ("papers", "", "holds no paper"),
    ("cocitation_edges", "[]", "line 1: expected a JSON object"),
    ("cocitation_edges", {"paper_id": "a"}, "'neighbours' must be a list"),
    (
      "cocitation_edges",
      {"paper_id": "a", "neighbours": [3]},
      "'neighbours' must be a string",
    ),
  ],
)
def test_a_broken_library_is_refused_by_line(name, line, message, tmp_path):
  folder = _folder(tmp_path, **{name: [line]})
  with pytest.raises(ValueError, match=f"{name}.jsonl.*{message}"):
    papers_library.open_library(folder)


@pytest.mark.parametrize(
  ("name", "line", "message"),
  [
    ("queries", QUERIES[0] | {"answer_ids": []}, "line 1: 'answer_ids'"),
    ("queries", QUERIES[0] | {"question": ""}, "line 1: 'question'"),
    ("queries", QUERIES[0] | {"qid": None}, "line 1: 'qid'"),
    (
      "relevance",
      {"qid": "q1", "paper_id": "a", "score": "high"},
      "line 1: 'score' must be a number, got 'high'",
    ),
    (
      "relevance",
      '{"qid": "q1", "paper_id": "a", "score": NaN}',
      "line 1: 'score' must be a number",
    ),
    (
      "relevance",
      {"qid": "q9", "paper_id": "a", "score": 1},
      "there is no query 'q9'",
    ),
  ],
)
def test_broken_queries_are_refused_by_line(name, line, message, tmp_path):
  folder = _folder(tmp_path, **{name: [line]})
  with pytest.raises(ValueError, match=f"{name}.jsonl.*{message}"):
    papers_library.load_tasks(folder, "s")


def test_missing_files_splits_and_twins_are_named(tmp_path):
  folder = _folder(tmp_path)
  with pytest.raises(ValueError, match="has no split 'u'; it has s, t"):
    papers_library.load_tasks(folder, "u")
  _write(folder, queries=QUERIES + QUERIES[:1])
  with pytest.raises(ValueError, match="line 4: a second query 'q1'"):
    papers_library.load_tasks(folder, "s")
  _write(folder, papers=PAPERS + PAPERS[:1])
  with pytest.raises(ValueError, match=r"papers.jsonl: two documents"):
    papers_library.open_library(folder)
  (folder / "cocitation_edges.jsonl").unlink()
  with pytest.raises(ValueError, match=r"has no citations.jsonl or cocit"):
    papers_library.open_library(folder)
  with pytest.raises(ValueError, match=r"has no papers.jsonl or papers_titles"):
    papers_library.open_library(tmp_path)
  (folder / "papers.jsonl").unlink()
  with gzip.open(folder / "papers.jsonl.gz", "wb") as file:
    file.write(b'{"paper_id": "\xff"}')
  _write(folder, citations=[])
  with pytest.raises(ValueError, match=r"papers.jsonl.gz is not UTF-8"):
    papers_library.open_library(folder)


@hypothesis.given(st.lists(st.binary(max_size=30), max_size=4))
def test_any_bytes_are_read_or_refused_with_the_name(tmp_path_factory, lines):
  folder = _folder(tmp_path_factory.mktemp("any"))
  (folder / "papers.jsonl").write_bytes(b"\n".join(lines))
  # No such line is a paper, so that something is always to be refused.
  with pytest.raises(ValueError) as error:
    papers_library.open_library(folder)
  assert str(folder) in str(error.value)


@pytest.mark.parametrize("size", some("small", slow=papers_worlds.SIZES))
def test_every_generated_query_is_won_by_its_expert(size):
  env = papers_env.PaperSearchEnv()
  for split in papers_worlds.SPLITS:
    for number in range(60):
      task = papers_worlds.generate(number, split=split, size=size)
      assert len(task.payload["papers"]) == papers_worlds.SIZES[size][0]
      env.reset(task, 0)
      steps = [env.step(action) for action in papers_worlds.expert(task)]
      assert [s.info["won"] for s in steps] == [
        *([False] * (len(steps) - 1)), True,
      ], task.uid  # fmt: skip
      assert not any(s.info["invalid"] for s in steps)
      assert len(steps) == task.golden_steps <= 5
      # In the family "search" the first search finds all.
      assert (len(steps) == 1) == (task.family == "search")


def test_held_out_pairs_are_asked_in_valid_unseen_alone():
  asked = {}
  for split in papers_worlds.SPLITS:
    for number in range(300):
      task = papers_worlds.generate(number, split=split, size="tiny")
      words = task.payload["question"].strip("?.").split()
      cut = words.index("for") if "for" in words else words.index("to")
      asked.setdefault(split, set()).add((words[cut - 1], words[cut + 1]))
  unseen = asked["valid_unseen"]
  assert len(unseen) > 30
  assert all(papers_worlds.is_held_out(*pair) for pair in unseen)
  for split in ("train", "valid_seen"):
    assert not any(papers_worlds.is_held_out(*pair) for pair in asked[split])


def test_a_query_is_a_function_of_its_arguments():
  task = papers_worlds.generate(5, split="train", size="small")
  assert task == papers_worlds.generate(5, split="train", size="small")
  assert json.loads(json.dumps(task.payload)) == task.payload
  other = papers_worlds.generate(5, split="valid_seen", size="small")
  assert other.payload != task.payload


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": "test"}, "split must be one of train"),
    ({"size": "huge"}, "size must be one of tiny"),
    ({"seed": True}, "seed must be an integer"),
  ],
)
def test_unknown_arguments_are_refused(options, message):
  arguments = {"seed": 0, "split": "train", "size": "tiny"} | options
  with pytest.raises(ValueError, match=message):
    papers_worlds.generate(arguments.pop("seed"), **arguments)
