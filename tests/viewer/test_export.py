"""The command `view`, and pages that are written to be shared."""

import base64
import hashlib
import html.parser
import http.client
import json
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import recorded_runs

from steppo_jax import __main__
from steppo_jax.rollout import journal
from steppo_jax.storage import labels
from steppo_jax.viewer import export

NASTY = "</script><script>alert(1)</script><!-- \u2028 ]]> & \x1b[1m \ud83d"


@pytest.fixture
def run(tmp_path):
  run = recorded_runs.make(tmp_path / "a-seed0", updates=3)
  one = recorded_runs.episode(
    "nasty<b>", recorded_runs.task_of(1), steps=2,
    rng=np.random.default_rng(0), seen=(NASTY, NASTY), said=(NASTY,),
  )  # fmt: skip
  recorded_runs.write_journal(run, 3, [one])
  return run


def viewed(tmp_path, *argv, status=0):
  cache = str(tmp_path / "cache")
  assert __main__.main(["view", "--cache", cache, *map(str, argv)]) == status


class Parts(html.parser.HTMLParser):
  """What a browser finds in a page: elements, and texts of some."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts = [], {}
    self._open = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._open = (tag, dict(attrs).get("type"))

  def handle_data(self, data):
    self.texts[self._open] = self.texts.get(self._open, "") + data

  def handle_endtag(self, tag):
    self._open = None


def page_of(folder):
  text = (folder / "index.html").read_text()
  parts = Parts(text)
  data = parts.texts["script", "application/json"]
  return text, parts, json.loads(data)


def test_chosen_episodes_are_written_with_all_their_tokens(run, tmp_path):
  out = tmp_path / "shared"
  viewed(tmp_path, run, "--export", out, "--where", "at_min=1", "at_max=1")
  _, _, data = page_of(out)
  written = journal.read(run / "journal" / "1-0.journal").trajectories
  assert {row["uid"] for row in data["rows"]} == set(written)
  for one in data["episodes"].values():
    for told, step in zip(one["steps"], written[one["uid"]].steps, strict=True):
      assert told["response"]["ids"] == step.response_ids.tolist()


def test_a_page_holds_scripts_of_its_own_alone_and_loads_nothing(run, tmp_path):
  out = tmp_path / "shared"
  viewed(tmp_path, run, "--export", out, "--episodes", "nasty<b>")
  text, parts, data = page_of(out)
  assert data["rows"][0]["uid"] == "nasty<b>"
  (one,) = data["episodes"].values()
  shown = "".join(one["steps"][0]["response"]["texts"])
  assert shown == f"{NASTY}<end_of_turn>"
  scripts = [attrs for tag, attrs in parts.tags if tag == "script"]
  assert [one.get("type") for one in scripts] == ["application/json", "module"]
  links = [
    attrs.get(name)
    for _, attrs in parts.tags
    for name in ("src", "href")
    if attrs.get(name) is not None
  ]
  assert set(links) == {"data:,", "#main"}
  assert "import" not in re.findall(r"^\w+", text, re.MULTILINE)
  assert str(tmp_path) not in text
  policy = next(
    attrs["content"] for tag, attrs in parts.tags
    if attrs.get("http-equiv") == "Content-Security-Policy"
  )  # fmt: skip
  for tag in (("script", "module"), ("style", None)):
    digest = hashlib.sha256(parts.texts[tag].encode()).digest()
    assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
  assert policy.startswith("default-src 'none'")


@hypothesis.given(
  st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9)
    | st.text("<>&/!-\"'\\ascript\u2028\ud83d\x00\u20ac"),
    lambda of: st.lists(of, max_size=4)
    | st.dictionaries(st.text("<>&k", max_size=4), of, max_size=4),
    max_leaves=12,
  )
)  # fmt: skip
def test_data_within_a_page_end_no_script_and_come_back(data):
  text = export.inlined(data)
  assert text.isascii()
  assert not set("<>&") & set(text)
  assert json.loads(text) == data


def test_what_was_excluded_is_left_out_unless_it_is_named(run, tmp_path):
  labels.add(run, "0-0-0", labels.Label("exclude", "loops"))
  viewed(tmp_path, run, "--export", tmp_path / "a")
  found = {row["uid"] for row in page_of(tmp_path / "a")[2]["rows"]}
  assert len(found) == 24
  assert "0-0-0" not in found
  viewed(tmp_path, run, "--export", tmp_path / "b", "--episodes", "0-0-0")
  (row,) = page_of(tmp_path / "b")[2]["rows"]
  assert (row["uid"], row["verdict"], row["note"]) == (
    "0-0-0", "exclude", "loops",
  )  # fmt: skip
  viewed(tmp_path, run, "--export", tmp_path / "c", "--most", "3")
  assert len(page_of(tmp_path / "c")[2]["rows"]) == 3


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("--export", "OUT", "--where", "success"), "--where takes NAME=VALUE"),
    (("--export", "OUT", "--where", "at_min=x"), "at_min='x' is no number"),
    (("--export", "OUT", "--where", "family=none"), "no episode is left"),
    (("--export", "OUT", "--episodes", "x-y"), "there is no episode x-y"),
    (("--export", "RUN"), "holds something"),
    (("--export", "OUT", "--most", "0"), "--most=0"),
    (("--where", "success=1"), "belong to --export"),
    (("--port", "70000"), "--port=70000"),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line(run, tmp_path, capsys, argv, message):
  put = {"OUT": str(tmp_path / "out"), "RUN": str(run)}
  viewed(tmp_path, run, *(put.get(x, x) for x in argv), status=2)
  said = " ".join(capsys.readouterr().err.split())
  assert message in said
  assert not (tmp_path / "out").exists()


def test_token_ids_are_numbers_where_the_tokenizer_cannot_be_read(
  run, tmp_path, capsys
):
  config = json.loads((run / "config.json").read_text())
  config["tokenizer"] = str(tmp_path / "broken.model")
  (tmp_path / "broken.model").write_bytes(b"no model")
  (run / "config.json").write_text(json.dumps(config))
  viewed(tmp_path, run, "--export", tmp_path / "out", "--episodes", "0-0-0")
  text, _, data = page_of(tmp_path / "out")
  (one,) = data["episodes"].values()
  assert one["without_text"] == "token ids are shown as numbers"
  first = one["steps"][0]["prompt"]
  assert first["texts"] == [f"<id {index}>" for index in first["ids"]]
  assert str(tmp_path) not in text
  viewed(
    tmp_path, run, "--tokenizer", "household", "--export", tmp_path / "b",
    "--episodes", "0-0-0",
  )  # fmt: skip
  (one,) = page_of(tmp_path / "b")[2]["episodes"].values()
  assert "drawer" in "".join(one["steps"][0]["prompt"]["texts"])


def test_the_command_serves_until_it_is_ended_and_loads_no_jax(run, tmp_path):
  code = (
    "import sys; from steppo_jax import __main__\n"
    f"__main__.main(['view', {str(run)!r}, '--no-browser', '--cache',"
    f" {str(tmp_path / 'cache')!r}])\n"
    "print('loaded:', *{'jax', 'flax', 'tensorflow'} & set(sys.modules))"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
  ) as process:
    line = process.stdout.readline()
    port = int(re.fullmatch(r"listening on http://[\d.]+:(\d+)\n", line)[1])
    there = http.client.HTTPConnection("localhost", port, timeout=30)
    there.request("GET", "/api/about")
    (about,) = json.loads(there.getresponse().read())
    there.close()
    assert about["label"] == "a-seed0"
    process.send_signal(2)
    rest = process.stdout.read()
    assert process.wait() == 0
  assert rest == "loaded:\n"
