"""The viewer over HTTP: what it answers, and whom it refuses."""

import contextlib
import http.client
import json
import re
import sys
import time
import urllib.parse

import numpy as np
import pytest
import recorded_runs

from steppo_jax.rollout import journal
from steppo_jax.serving import background
from steppo_jax.storage import credit as credit_lib
from steppo_jax.storage import labels
from steppo_jax.viewer import app as app_lib
from steppo_jax.viewer import runs

NASTY = (
  "<script>document.title='ran'</script><img src=x onerror=alert(1)>",
  "\x1b[31mred\x1b[0m \x07 \u202egnp.exe \u2028 \ud83d &lt;b&gt; </script>",
)


class Browser:
  """What a browser would send, or somebody who is none."""

  def __init__(self, port):
    self._port = port
    self.host = f"localhost:{port}"

  def __call__(self, method, path, body=None, **headers):
    there = http.client.HTTPConnection("localhost", self._port, timeout=30)
    with contextlib.closing(there):
      sent = {"Host": self.host} | {
        name.replace("_", "-"): value for name, value in headers.items()
      }
      there.putrequest(method, path, skip_host=True)
      data = None if body is None else json.dumps(body).encode()
      if data is not None:
        sent.setdefault("Content-Type", "application/json")
        sent["Content-Length"] = str(len(data))
      for name, value in sent.items():
        there.putheader(name, value)
      there.endheaders(data)
      found = there.getresponse()
      return found, found.read()

  def get(self, path, **query):
    found, data = self("GET", f"{path}?{urllib.parse.urlencode(query)}")
    return found.status, json.loads(data)

  def token(self):
    page = self("GET", "/")[1].decode()
    return re.search(r'name="token" content="([\w-]+)"', page)[1]

  def post(self, path, body, **headers):
    sent = {"Origin": f"http://{self.host}", "X_Token": self.token()}
    found, data = self("POST", path, body, **sent | headers)
    return found.status, json.loads(data)


_CREDIT = """
import json, pathlib, sys
run, update = pathlib.Path(sys.argv[1]), int(sys.argv[3])
assert sys.argv[2::2] == ["--update", "--json"]
print(json.dumps({"done": 1, "total": 2}), flush=True)
print("something else")
if update == 1:
  sys.exit("no checkpoint is kept: set keep_checkpoints")
(run / "credit").mkdir(exist_ok=True)
(run / "later.npz").rename(run / "credit" / f"{update:06d}.npz")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  folder = tmp_path_factory.mktemp("served")
  first = recorded_runs.make(folder / "a-seed0", updates=6)
  recorded_runs.make(folder / "a-seed1", updates=6, seed=1)
  rng = np.random.default_rng(0)
  task = recorded_runs.task_of(1)
  nasty = recorded_runs.episode(
    "nasty<b>", task, steps=3, rng=rng, seen=NASTY, said=NASTY
  )
  recorded_runs.write_journal(first, 6, [nasty])
  script = folder / "credit.py"
  script.write_text(_CREDIT)
  shown = [
    runs.Run(
      number, folder / name, cache=folder / "cache",
      load_tokenizer=lambda _: recorded_runs.tokenizer(),
      credit_command=(sys.executable, str(script)),
    )
    for number, name in enumerate(("a-seed0", "a-seed1"))
  ]  # fmt: skip
  for run in shown:
    run.index.refresh()
  listening = background.listen("localhost", 0, key=None, option="--")
  port = listening.getsockname()[1]
  viewer = app_lib.Viewer(shown)
  server = background.Background(viewer.app(), listening)
  yield Browser(port), first
  server.close()
  for run in shown:
    run.close()


def test_the_page_and_its_files_are_served_with_a_strict_policy(served):
  ask, _ = served
  found, data = ask("GET", "/")
  assert found.status == 200
  assert b"TOKEN-OF-THIS-SERVER" not in data
  names = re.findall(r'(?:src|href)="(page/[^"]+)"', data.decode())
  assert len(names) == 2
  for name in [*names, "page/dom.js", "page/episode.js"]:
    found, _ = ask("GET", f"/{name}")
    assert found.status == 200
  policy = found.headers["Content-Security-Policy"]
  assert "default-src 'none'" in policy
  assert "unsafe" not in policy
  assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_no_script_of_the_page_makes_markup_of_text():
  for name, text in app_lib.page_files().items():
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(",
                "document.write", "DOMParser", "srcdoc", "new Function",
                "createContextualFragment", "://"):  # fmt: skip
      lines = [
        line for line in text.splitlines()
        if way in line and "www.w3.org/2000/svg" not in line
      ]  # fmt: skip
      assert not lines, (name, lines)
    assert text.count("\n") <= 450, name


@pytest.mark.parametrize(
  "path",
  [
    "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py",
    "/page//etc/passwd", "/page/index.html", "/page/", "/page/style.css/..",
    "/../config.json", "/config.json", "/a-seed0/config.json",
    "/page/..\\app.py", "/api/../config.json", "/api/nothing", "/api/",
    "/page/style.css%00.js", "/page/" + "x" * 5000,
  ],
)  # fmt: skip
def test_nothing_else_is_served(served, path):
  ask, _ = served
  found, data = ask("GET", path)
  assert found.status == 404
  assert set(json.loads(data)) == {"error"}


@pytest.mark.parametrize(
  "headers",
  [
    {"Host": "evil.example"}, {"Host": ""}, {"Host": "localhost:80:80"},
    {"Host": "localhost.evil.example:80"}, {"Host": "127.0.0.1.evil.example"},
    {"Host": "evil.example@localhost"}, {"Host": "10.0.0.1"},
    {"Origin": "http://evil.example"}, {"Origin": "null"},
    {"Origin": "https://OWN"}, {"Origin": "http://OTHER-PORT"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
  ],
  ids=str,
)  # fmt: skip
def test_other_sites_and_other_names_are_refused(served, headers):
  ask, _ = served
  put = lambda text: text.replace("OWN", ask.host).replace(
    "OTHER-PORT", "localhost:1"
  )
  sent = {name.replace("-", "_"): put(x) for name, x in headers.items()}
  assert ask("GET", "/api/episodes", **sent)[0].status == 403
  assert ask("POST", "/api/labels", {}, **sent)[0].status == 403


def test_a_tunnel_from_another_machine_is_answered(served):
  ask, _ = served
  host = "localhost:9000"
  sent = {"Host": host, "Origin": f"http://{host}"}
  assert ask("GET", "/api/about", **sent)[0].status == 200
  # A page at another port of this machine is another site.
  assert ask("GET", "/api/about", Origin=f"http://{host}")[0].status == 403


def test_a_link_elsewhere_may_lead_to_the_page(served):
  ask, _ = served
  sent = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
  assert ask("GET", "/", **sent)[0].status == 200


@pytest.mark.parametrize(
  "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
)
def test_what_is_read_is_read_by_get_alone(served, method):
  ask, _ = served
  for path in ("/", "/api/episodes", "/api/state", "/page/dom.js"):
    assert ask(method, path)[0].status == 405
  if method != "POST":
    assert ask(method, "/api/labels")[0].status == 405


@pytest.mark.parametrize(
  "query",
  [
    {"run": "x"}, {"run": "-1"}, {"run": "99"}, {"run": "1" * 40},
    {"order": "uid; DROP TABLE episodes"}, {"at_min": "nan"},
    {"reward_max": "1e999"}, {"page": "many"},
  ],
  ids=str,
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused_in_words(served, query):
  ask, _ = served
  status, found = ask.get("/api/episodes", **query)
  assert status in (400, 404)
  assert found["error"]
  assert ask.get("/api/episodes")[1]["total"] == 49


def test_what_has_not_changed_is_not_sent_again(served):
  ask, _ = served
  found, data = ask("GET", "/api/episodes?run=1")
  assert data
  tag = found.headers["ETag"]
  again, data = ask("GET", "/api/episodes?run=1", If_None_Match=tag)
  assert again.status == 304
  assert data == b""


def test_text_of_environments_and_models_is_sent_as_data(served):
  ask, _ = served
  row = ask.get("/api/episodes", at_min="6")[1]["rows"][0]
  assert row["uid"] == "nasty<b>"
  found, data = ask("GET", f"/api/episode?run=0&id={row['id']}")
  assert found.headers["Content-Type"] == "application/json"
  data.decode("ascii")
  one = json.loads(data)
  shown = "".join(one["steps"][0]["prompt"]["texts"])
  assert shown == f"<bos>{NASTY[0]}<end_of_turn>"
  assert any(
    "".join(step["response"]["texts"]).startswith(NASTY[1])
    for step in one["steps"]
  )


def test_prompts_can_be_put_together_from_what_is_new(served):
  ask, run = served
  written = journal.read(run / "journal" / "2-0.journal").trajectories
  for row in ask.get("/api/episodes", at_min="2", at_max="2")[1]["rows"]:
    one = ask.get("/api/episode", id=row["id"])[1]
    before = []
    for step, told in zip(written[row["uid"]].steps, one["steps"], strict=True):
      prompt = before[: told["prompt"]["shared"]] + told["prompt"]["ids"]
      assert prompt == step.prompt_ids.tolist()
      assert told["response"]["ids"] == step.response_ids.tolist()
      np.testing.assert_allclose(told["logp"], step.behaviour_logp, rtol=1e-6)
      before = prompt + told["response"]["ids"]


def test_seeds_of_one_name_are_one_curve_with_an_interval(served):
  ask, _ = served
  asked = {"name": "rollout/reward", "x": "episodes"}
  (curve,) = ask.get("/api/curves", **asked)[1]
  assert curve["label"] == "a (2 seeds)"
  assert curve["x"] == [8.0, 16.0, 24.0, 32.0, 40.0, 48.0]
  assert all(
    low <= y <= high
    for low, y, high in zip(
      curve["low"], curve["y"], curve["high"], strict=True
    )
  )
  alone = ask.get("/api/curves", apart="1", **asked)[1]
  assert [one["runs"] for one in alone] == [[0], [1]]
  means = np.mean([one["y"] for one in alone], axis=0)
  np.testing.assert_allclose(curve["y"], means)
  assert alone[0]["low"] == [None] * 6
  (success,) = ask.get("/api/curves", name="eval/success", runs="1")[1]
  assert success["low"][0] < success["y"][0] < success["high"][0]


def test_a_task_is_shown_as_the_tree_that_is_packed(served):
  ask, run = served
  task = recorded_runs.task_of(5)
  asked = {"task": task.uid}
  played = ask.get("/api/task", **asked)[1]["played"]
  assert [one["at"] for one in played] == [1]
  found = ask.get("/api/task", at="1", split="train", **asked)[1]
  written = journal.read(run / "journal" / "1-0.journal").trajectories
  group = [t for t in written.values() if t.task.uid == task.uid]
  rows = sum(
    len(s.prompt_ids) + len(s.response_ids) for t in group for s in t.steps
  ) + sum(len(t.final_prompt_ids) for t in group if not t.success)
  assert found["counts"]["rows"] == rows
  # Both share the first prompt and nothing of what they sampled.
  whole = sum(
    len(t.steps[-1].prompt_ids) + len(t.steps[-1].response_ids)
    if t.success else len(t.final_prompt_ids)
    for t in group
  )  # fmt: skip
  first = len(group[0].steps[0].prompt_ids)
  assert found["counts"]["packed"] == whole
  assert found["counts"]["tree"] == whole - first
  nodes = found["nodes"]
  assert sum(node["tokens"] for node in nodes) == found["counts"]["tree"]
  assert nodes[0]["members"] == [0, 1]
  assert nodes[0]["tokens"] == first
  assert all(len(node["members"]) == 1 for node in nodes[1:])
  responses = [n for n in nodes if n["step"] is not None]
  assert len(responses) == sum(len(t.steps) for t in group)
  assert ask.get("/api/task", task="none")[0] == 404
  assert ask.get("/api/task", at="4", **asked)[0] == 404


def test_a_label_needs_the_page_itself_and_is_kept(served):
  ask, run = served
  row = ask.get("/api/episodes", at_max="0")[1]["rows"][0]
  body = {"run": 0, "id": row["id"], "verdict": "exclude", "note": NASTY[1]}
  assert ask.post("/api/labels", body, X_Token="guessed")[0] == 403
  assert ask("POST", "/api/labels", body, X_Token=ask.token())[0].status == 403
  kind = {"Content_Type": "text/plain"}
  assert ask.post("/api/labels", body, **kind)[0] == 415
  assert not (run / labels.FILE_NAME).exists()
  assert ask.post("/api/labels", body)[0] == 200
  assert labels.read(run)["train", row["uid"]] == ("exclude", NASTY[1])
  rows = ask.get("/api/episodes", label="exclude")[1]["rows"]
  assert [one["uid"] for one in rows] == [row["uid"]]


@pytest.mark.parametrize(
  "change",
  [
    {"verdict": "maybe"}, {"verdict": None}, {"note": 3}, {"note": "x" * 10001},
    {"id": "x"}, {"id": None}, {"id": 10**9}, {"id": True}, {"run": 7},
  ],
  ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_label_that_is_none_is_refused(served, change):
  ask, run = served
  body = {"run": 0, "id": 1, "verdict": "keep", "note": ""}
  before = labels.read(run)
  status, found = ask.post("/api/labels", body | change)
  assert status in (400, 404)
  assert found["error"]
  assert labels.read(run) == before


@pytest.mark.parametrize("body", [[], "text", 3, None])
def test_a_body_that_is_no_object_is_refused(served, body):
  ask, _ = served
  assert ask.post("/api/labels", body)[0] in (400, 415)


def _wait(ask, update):
  for _ in range(600):
    state = ask.get("/api/state")[1][0]["credit"][str(update)]
    if not state["busy"]:
      return state
    time.sleep(0.02)
  raise AssertionError(f"still busy: {state}")


def test_credit_is_computed_when_it_is_asked_for(served):
  ask, run = served
  made = list(
    journal.read(run / "journal" / "3-0.journal").trajectories.values()
  )
  wanted = recorded_runs.write_credit(run, 3, made)
  credit_lib.path_of(run, 3).rename(run / "later.npz")
  row = next(
    row for row in ask.get("/api/episodes", at_min="3", at_max="3")[1]["rows"]
    if row["cause"] is None
  )  # fmt: skip
  before = ask.get("/api/episode", id=row["id"])[1]["credit"]
  assert before == {"why": "not computed yet", "can": True}
  assert ask.post("/api/credit", {"run": 0, "update": 3})[0] == 200
  state = _wait(ask, 3)
  assert state == {"busy": False, "done": 1, "total": 2, "error": ""}
  one = ask.get("/api/episode", id=row["id"])[1]
  steps = wanted.steps_of(row["uid"])
  for name in credit_lib.OF_STEPS:
    np.testing.assert_array_equal(
      np.array(one["credit"]["steps"][name], np.float32),
      getattr(wanted, name)[steps],
    )
  first = wanted.first_token[steps.start : steps.stop + 1]
  for name in ("logp", "ratio_t", "advantage_t", "clipped"):
    np.testing.assert_array_equal(
      np.array(one["credit"]["tokens"][name], np.float32),
      getattr(wanted, name)[first[0] : first[-1]],
    )
  assert one["credit"]["tokens"]["teacher_gap"][0] is None
  sizes = [len(step["response"]["ids"]) for step in one["steps"]]
  assert steps.start > 0
  assert one["credit"]["first"] == [0, *np.cumsum(sizes).tolist()]


def test_why_credit_cannot_be_computed_is_told(served):
  ask, _ = served
  assert ask.post("/api/credit", {"run": 0, "update": 99})[0] == 404
  assert ask.post("/api/credit", {"run": 0, "update": 1})[0] == 200
  assert "no checkpoint is kept" in _wait(ask, 1)["error"]
  # Nothing is written by this one, which has nothing to move.
  assert ask.post("/api/credit", {"run": 0, "update": 2})[0] == 200
  assert "FileNotFoundError" in _wait(ask, 2)["error"]


def test_a_damaged_file_of_credit_is_told(served):
  ask, run = served
  path = credit_lib.path_of(run, 4)
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(b"PK\x03\x04 cut")
  row = ask.get("/api/episodes", at_min="4", at_max="4")[1]["rows"][0]
  assert "damaged" in ask.get("/api/episode", id=row["id"])[1]["credit"]["why"]
