"""Prepared task lists come back as they were, move, and show damage."""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from marks import some

from steppo_jax import __main__ as cli
from steppo_jax.datasets import store
from steppo_jax.datasets import tasks as datasets_tasks
from steppo_jax.training import config, evaluate, players

GENERATED = ["household", "paper_search", "search_qa", "webshop"]


def _made(env, output, **options):
  return datasets_tasks.prepare(env, output, size="tiny", count=6, **options)


def _source(**options):
  return players.make_tasks(config.EnvConfig(**options))


@pytest.mark.parametrize("env", GENERATED)
def test_generated_tasks_come_back_as_they_were(env, tmp_path):
  folder = _made(env, tmp_path)
  source = _source(name=env, size="tiny")
  for split in source.splits():
    assert list(datasets_tasks.load(folder, split)) == source.panel(split, 6)
  facts = datasets_tasks.describe(folder)
  assert facts.env == env
  assert facts.splits == dict.fromkeys(source.splits(), 6)


def _published(root):
  """Small folders of real form: two products, paragraphs, papers, games."""
  lines = {
    "questions/corpus.jsonl": [
      {"id": "d1", "title": "Big Fish", "text": "A film by Tim Burton."},
      {"id": "d2", "title": "Tim Burton", "text": "Born in Burbank."},
    ],
    "questions/questions.jsonl": [
      {"id": f"q{n}", "dataset": "hotpotqa", "split": split,
       "question": "Where was the director of Big Fish born?",
       "answers": ["Burbank", "Burbank, é \u2028 \u0000"],
       "gold_ids": ["d1", "d2"]}
      for n, split in enumerate(["train", "train", "validation"])
    ],
    "papers/papers.jsonl": [
      {"paper_id": id_, "title": f"On {id_}", "abstract": ""} for id_ in "abc"
    ],
    "papers/cocitation_edges.jsonl": [{"paper_id": "a", "neighbours": ["b"]}],
    "papers/queries.jsonl": [
      {"qid": f"q{n}", "split": split, "question": "On a", "answer_ids": ["a",
       "b"]} for n, split in enumerate(["auto_dev", "auto_test"])
    ],
  }  # fmt: skip
  for name, rows in lines.items():
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  product = {
    "asin": "A1", "name": "desk lamp", "query": "lamp", "category": "home",
    "product_category": "Home › Light", "full_description": "A lamp.",
    "small_description": ["warm"], "pricing": "$10", "brand": "B",
    "customization_options": {"color": [{"value": "red"}, {"value": "tan"}]},
  }  # fmt: skip
  asked = {"instruction": "find me a lamp", "attributes": ["warm"],
           "instruction_attributes": ["warm"]}  # fmt: skip
  (root / "shop").mkdir()
  with gzip.open(root / "shop" / "items_shuffle_1000.x.json.gz", "wt") as file:
    json.dump([product, product | {"asin": "A2"}], file)
  (root / "shop" / "items_ins_v2_1000.json").write_text(
    json.dumps({"A1": asked, "A2": asked})
  )
  return root


REAL = [
  ("search_qa", "questions", "train"),
  ("paper_search", "papers", "auto_test"),
  ("webshop", "shop", "test"),
]


@pytest.mark.parametrize(("env", "name", "split"), REAL)
def test_real_tasks_bring_their_files_and_can_be_moved(
  env, name, split, tmp_path
):
  raw = _published(tmp_path) / name
  options = {"by": "index"} if env == "webshop" else {}
  made = datasets_tasks.prepare(
    env, tmp_path / "out", data_dir=raw, options=options
  )
  want = _source(
    name=env, data_dir=str(raw), options=("by=index",) if options else ()
  ).panel(split, 9)
  folder = tmp_path / "elsewhere" / "set"
  folder.parent.mkdir()
  shutil.move(made, folder)
  shutil.rmtree(raw)
  recipes = players.recipes(config.EnvConfig(name=env, task_set=str(folder)))
  found = recipes.tasks.make().panel(split, 9)
  assert [task.uid for task in found] == [task.uid for task in want]
  swap = lambda p: json.dumps(p).replace(str(raw), str(folder.resolve()))
  assert [t.payload for t in found] == [
    json.loads(swap(dict(t.payload))) for t in want
  ]
  # The environment plays from the copies: the source is gone.
  env = recipes.env.make()
  env.reset(found[0], 0)
  query = "search[lamp]" if name == "shop" else "<search>On a film</search>"
  assert not env.step(query).info["invalid"]


@pytest.mark.parametrize(
  ("env", "folder", "splits"),
  some(
    ("alfworld", "alfworld", {"valid_seen": 140}),
    ("search_qa", "hotpotqa", {"train": 200, "validation": 621}),
    ("paper_search", "paper_search", {"auto_test": 1000, "real_test": 50}),
    slow=[("webshop", "webshop", None)],
  ),
)
def test_the_real_data_come_back_as_they_were(
  env, folder, splits, shared_dir, tmp_path
):
  raw = shared_dir / "data" / folder
  if not raw.is_dir():
    pytest.skip(f"no folder {raw}")
  made = datasets_tasks.prepare(
    env, tmp_path, data_dir=raw, splits=tuple(splits or ())
  )
  sizes = datasets_tasks.describe(made).splits
  assert sizes == splits or sum(sizes.values()) == 6910
  source = _source(name=env, data_dir=str(raw))
  for split in sizes:
    found, want = datasets_tasks.load(made, split), source.panel(split, 10**6)
    assert evaluate.panel_hash(found) == evaluate.panel_hash(want)
    for one, other in zip(found, want, strict=True):
      payload = dict(other.payload)
      if env == "webshop":
        payload["shop"] = {"data_dir": str(made)}
      assert one.payload == payload
      assert (one.family, one.golden_steps) == (
        other.family, other.golden_steps,
      )  # fmt: skip


def test_a_run_takes_its_tasks_from_a_prepared_set(tmp_path):
  folder = str(_made("search_qa", tmp_path))
  options = config.EnvConfig(name="search_qa", task_set=folder)
  tasks = players.make_tasks(options)
  known = set(t.uid for t in datasets_tasks.load(folder, "train"))
  drawn = tasks.sample(4, seed=0, update=0)
  assert {t.uid for t in drawn} <= known
  assert drawn == tasks.sample(4, seed=0, update=0)
  env = players.make_env(options)()
  assert "Your task is to" in env.reset(drawn[0], 0).observation
  with pytest.raises(ValueError, match="holds tasks of search_qa, not of webs"):
    players.recipes(config.EnvConfig(name="webshop", task_set=folder))
  with pytest.raises(ValueError, match="has no split 'test'; it has train"):
    tasks.panel("test", 1)


def test_household_sets_are_played_as_alfworld_too(tmp_path):
  folder = str(_made("household", tmp_path))
  for name in ("household", "alfworld"):
    recipes = players.recipes(config.EnvConfig(name=name, task_set=folder))
    task = recipes.tasks.make().panel("valid_unseen", 1)[0]
    assert task.payload["task"] in recipes.env.make().reset(task, 0).observation


def test_preparing_again_changes_nothing_and_other_tasks_are_other_data(
  tmp_path,
):
  folder = _made("webshop", tmp_path)
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert _made("webshop", tmp_path) == folder
  assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before
  other = datasets_tasks.prepare("webshop", tmp_path, size="tiny", count=7)
  assert other != folder
  (folder / store.DIGESTS).unlink()  # As a kill would leave it.
  with pytest.raises(ValueError, match="not a prepared dataset"):
    datasets_tasks.load(folder, "train")
  assert len(datasets_tasks.load(_made("webshop", tmp_path), "train")) == 6


@pytest.mark.parametrize(
  "victim", ["array_record", "corpus", "facts", "sha256"]
)
def test_a_flipped_byte_is_told_with_the_file(victim, tmp_path):
  raw = _published(tmp_path) / "questions"
  folder = datasets_tasks.prepare("search_qa", tmp_path / "out", data_dir=raw)
  path = sorted(p for p in folder.iterdir() if victim in p.name)[0]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises((RuntimeError, ValueError)) as raised:
    datasets_tasks.load(folder, "train")
  assert path.name in str(raised.value) or victim == "sha256"
  assert "remove that folder" in str(raised.value) or victim == "facts"
  with pytest.raises(RuntimeError, match="remove that folder"):
    store.verify(folder)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"env": "webshopp", "count": 1}, "did you mean 'webshop'"),
    ({"env": "webshop"}, "without end: say how many"),
    ({"env": "webshop", "count": 0}, "at least 1, got 0"),
    ({"env": "webshop", "count": 1, "size": "huge"}, "none of tiny"),
    ({"env": "webshop", "count": 1, "splits": ("test",)}, "'test' is none"),
    ({"env": "webshop", "count": 1, "options": {"bye": 1}}, "mean 'by'"),
    ({"env": "webshop", "data_dir": "/nowhere"}, "is not a folder"),
    ({"env": "household", "data_dir": "/nowhere"}, "are alfworld's"),
    ({"env": "alfworld", "count": 1}, "needs env.data_dir"),
    ({"env": "search_qa", "data_dir": "/nowhere"}, "is not a folder"),
  ],
)
def test_what_cannot_be_prepared_is_refused(options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    datasets_tasks.prepare(output=tmp_path / "out", **options)
  assert not (tmp_path / "out").exists()


def test_other_folders_are_not_task_sets(tmp_path):
  with pytest.raises(ValueError, match=r"it has no facts.json"):
    players.recipes(config.EnvConfig(task_set=str(tmp_path)))
  (tmp_path / "facts.json").write_text('{"kind": "trajectories"}')
  with pytest.raises(ValueError, match="not one of tasks"):
    datasets_tasks.describe(tmp_path)
  (tmp_path / "facts.json").write_bytes(b"\xff")
  with pytest.raises(ValueError, match=r"facts.json"):
    datasets_tasks.describe(tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="output must be a folder"):
    _made("webshop", tmp_path / "file")


def test_the_command_teaches_makes_and_checks(tmp_path, capsys):
  with pytest.raises(SystemExit):
    cli.main(["data", "--help"])
  said = capsys.readouterr().out
  assert "env.task_set=FOLDER" in said
  assert "--option by=index" in said
  output = str(tmp_path / "out")
  command = ["data", "webshop", "--size", "tiny", "--episodes", "3"]
  assert cli.main([*command, "--output", output]) == 0
  folder = pathlib.Path(capsys.readouterr().out.strip())
  assert len(datasets_tasks.load(folder, "train")) == 3
  made = ["data", "household", "--demonstrations", "--episodes", "2"]
  assert cli.main([*made, "--size", "tiny", "--output", output]) == 0
  assert pathlib.Path(capsys.readouterr().out.strip()).is_dir()
  shop = ["data", "webshop", "--demonstrations", "--output", output]
  made = [*shop, "--size", "tiny", "--episodes", "2"]
  assert cli.main([*made, "--option", "reward=score"]) == 0
  assert "webshop_demonstrations" in capsys.readouterr().out
  assert cli.main([*shop, "--data-dir", output]) == 2
  assert "of generated worlds" in capsys.readouterr().err
  assert cli.main([*shop, "--detours", "1"]) == 2
  assert "the household's expert" in capsys.readouterr().err
  assert cli.main([*command, "--detours", "1", "--output", output]) == 2
  assert "belongs to --demonstrations" in capsys.readouterr().err


def test_published_files_of_questions_become_a_set(tmp_path, capsys):
  hotpot = {
    "_id": "h", "question": "Where was its director born?",
    "answer": "Burbank", "supporting_facts": [["Tim", 0]],
    "context": [["Big Fish", ["A film."]], ["Tim", ["Born ", "there."]]],
  }  # fmt: skip
  musique = {
    "id": "m", "question": "Who?", "answer": "Tim", "answer_aliases": ["T."],
    "paragraphs": [{"title": "Big Fish", "paragraph_text": "A film.",
                    "is_supporting": True}],
  }  # fmt: skip
  files = [tmp_path / "hotpot.json", tmp_path / "musique.jsonl"]
  files[0].write_text(json.dumps([hotpot]))
  files[1].write_text(json.dumps(musique) + "\n")
  command = ["data", "search_qa", "--output", str(tmp_path / "out")]
  made = [*command, "--split", "dev", "--published", *map(str, files)]
  assert cli.main(made) == 0
  folder = pathlib.Path(capsys.readouterr().out.strip())
  tasks = datasets_tasks.load(folder, "dev")
  assert [t.uid for t in tasks] == ["hotpotqa/h", "musique/m"]
  assert tasks[1].payload["answers"] == ["Tim", "T."]
  assert (folder / "corpus.jsonl.gz").is_file()
  for wrong, message in (
    (made[:4] + made[6:], "needs one --split"),
    ([*made, "--data-dir", "x"], "takes the place of --data-dir"),
    ([*command, "--aliases", "x", "--data-dir", "y"], "belongs to --published"),
    ([*command, "--split", "dev", "--published", "nowhere.json"], "nowhere"),
  ):
    assert cli.main(wrong) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
  code = (
    "import sys; from steppo_jax.datasets import tasks as task_sets\n"
    f"made = task_sets.prepare('webshop', {str(tmp_path)!r}, size='tiny', "
    "count=2)\nlist(task_sets.load(made, 'train'))\n"
    "bad = [m for m in sys.modules if m in ('tensorflow', 'jax')]\n"
    "sys.exit(f'imported {bad}' if bad else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
