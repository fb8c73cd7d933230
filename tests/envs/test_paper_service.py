"""The paper service in a process of its own, and services that are none."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import hypothesis
import hypothesis.strategies as st
import pytest

from steppo_jax import types
from steppo_jax.envs.papers import env as papers_env
from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.papers import service as papers_service

PAPERS = [
  {"paper_id": "a", "title": "Sparse attention", "abstract": "For parsing."},
  {"paper_id": "b", "title": "Notes", "abstract": "über"},
  {"paper_id": "c", "title": "More notes"},
]
EDGES = [{"paper_id": "a", "references": ["b"]}]
PAYLOAD = {"question": "Which notes?", "answers": ["b"]}
TASK = types.Task("t", "paper_search", "f", PAYLOAD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("papers")
  for name, rows in (("papers", PAPERS), ("citations", EDGES)):
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / f"{name}.jsonl").write_text(text)
  return folder


@contextlib.contextmanager
def _process(*arguments):
  """The service as a user starts it; gives its address."""
  command = [sys.executable, "-m", "steppo_jax", "serve", "papers", *arguments]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=os.environ
  ) as process:
    try:
      line = process.stdout.readline()
      assert " papers at http://" in line
      yield process, line.split(" at ")[1].strip()
    finally:
      process.kill()


@pytest.fixture(scope="module")
def url(folder):
  with _process("--data-dir", str(folder)) as (_, url):
    yield url


def _post(url, path, body, **headers):
  """Status and record of a raw request."""
  host = url.removeprefix("http://")
  with contextlib.closing(
    http.client.HTTPConnection(host, timeout=10)
  ) as connection:
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.slow
def test_a_remote_library_is_the_local_one(url, folder):
  local = papers_library.open_library(folder)
  remote = papers_service.RemoteLibrary(url)
  for query in ("notes", "parsing notes", "", "zzz", "\ud800 über"):
    assert remote.search(query, 2) == local.search(query, 2)
  for paper in ("a", "b", "c"):
    assert remote.expand(paper) == local.expand(paper)
  with pytest.raises(KeyError):
    remote.expand("zz")
  with pytest.raises(RuntimeError, match=r"status 400: .*'top' must be"):
    remote.search("notes", 0)
  remote.close()
  assert remote.search("notes", 1) == local.search("notes", 1)
  remote.close()


def test_episodes_over_the_service_are_those_without(url, folder):
  far = papers_env.PaperSearchEnv(service=url)
  near = papers_env.PaperSearchEnv(data_dir=folder)
  assert far.reset(TASK, 0) == near.reset(TASK, 0)
  for text in (
    "<search>parsing</search>",
    "<expand>a</expand><expand>a</expand>",
    "<search>notes</search>",
    "<search>" + "notes " * 20_000 + "</search>",
    "<answer>done</answer>",
  ):
    assert far.step(text) == near.step(text)
  far.close()


@pytest.mark.slow
def test_many_threads_share_a_client(url, folder):
  remote = papers_service.RemoteLibrary(url)
  want = papers_library.open_library(folder).search("notes", 3)

  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: remote.search("notes", 3), range(64)))
  remote.close()
  assert found == [want] * 64


@pytest.mark.parametrize(
  ("path", "body", "status", "message"),
  [
    ("/search", b"", 400, "not JSON"),
    ("/search", b"{", 400, "not JSON"),
    ("/search", b"\xff", 400, "not JSON"),
    ("/search", b"[" * 100_000, 400, "not JSON"),
    ("/search", b"[]", 400, "not a JSON object"),
    ("/search", b"{}", 400, "'query' must be a string"),
    ("/search", b'{"query": "a", "top": 1001}', 400, "from 1 to 1000"),
    ("/search", b'{"query": "a", "top": true}', 400, "from 1 to 1000"),
    ("/search", b'{"query": "a", "top": 1e3}', 400, "from 1 to 1000"),
    ("/expand", b"{}", 400, "'paper_id' must be a string"),
    ("/expand", b'{"paper_id": "zz"}', 404, "there is no paper 'zz'"),
    ("/fly", b"{}", 404, "there is no POST /fly"),
    ("/search", b" " * ((1 << 20) + 1), 413, "at most 1048576 bytes"),
  ],
)  # fmt: skip
def test_bad_requests_are_refused_with_a_reason(
  url, path, body, status, message
):
  if status == 413:
    # The refusal comes before the body was read.
    found, record = _post(url, path, None, **{"Content-Length": "1048577"})
  else:
    found, record = _post(url, path, body)
  assert found == status
  assert message in record["error"]


@hypothesis.given(st.binary(max_size=200), st.sampled_from(["/search", "/x"]))
def test_any_body_is_answered(url, body, path):
  status, record = _post(url, path, body)
  assert status in (200, 400, 404)
  assert set(record) <= {"papers", "error"}


def test_a_length_that_is_none_is_refused(url):
  for length in ("-1", "x", "9" * 5000, "²"):
    status, record = _post(
      url, "/search", b"{}", **{"Content-Length": length.encode("latin-1")}
    )
    assert status in (411, 413), record


def test_health_and_nothing_else_is_got(url):
  host = url.removeprefix("http://")
  for path, status in (("/health", 200), ("/search", 404)):
    with contextlib.closing(
      http.client.HTTPConnection(host, timeout=10)
    ) as connection:
      connection.request("GET", path)
      answer = connection.getresponse()
      record = json.loads(answer.read())
      assert answer.status == status
      assert record.get("papers") == (3 if status == 200 else None)


def test_a_client_that_goes_away_disturbs_no_other(url):
  host, port = url.removeprefix("http://").split(":")
  for data in (b"", b"POST /search HTTP/1.1\r\n", b"\x00" * 3000):
    with socket.create_connection((host, int(port))) as half:
      half.sendall(data)
  with contextlib.closing(papers_service.RemoteLibrary(url)) as remote:
    assert remote.search("notes", 1)


@pytest.mark.slow
def test_a_service_that_dies_fails_the_step_and_one_that_returns_heals_it(
  folder,
):
  with _process("--data-dir", str(folder)) as (process, url):
    env = papers_env.PaperSearchEnv(service=url, service_timeout_s=1.0)
    env.reset(TASK, 0)
    env.step("<search>parsing</search>")
    before = env.anchor()
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match=r"no answer within 1 s in \d+ att"):
      env.step("<search>notes</search>")
    assert env.anchor() == before
    port = url.rsplit(":", 1)[1]
    with _process("--data-dir", str(folder), "--port", port):
      step = env.step("<search>notes</search>")
      assert step.info["won"]
      assert step.reward == 1.0
    env.close()


@contextlib.contextmanager
def _impostor(answer):
  """A server that treats each connection by `answer`; gives its address."""
  done = threading.Event()
  with socket.create_server(("127.0.0.1", 0)) as server:
    server.settimeout(0.05)

    def serve():
      while not done.is_set():
        with contextlib.suppress(OSError):
          connection, _ = server.accept()
          threading.Thread(target=treat, args=(connection,)).start()

    def treat(connection):
      with contextlib.suppress(OSError), connection:
        connection.settimeout(5)
        connection.recv(1 << 16)
        answer(connection, done)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
      yield "http://{}:{}".format(*server.getsockname())
    finally:
      done.set()
      thread.join()


def _silent(connection, done):
  done.wait()


def _dripping(connection, done):
  connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
  while not done.wait(0.05):
    connection.sendall(b" ")


def _failing(connection, done):
  connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


def _hanging_up(connection, done):
  """Closes without a word."""


@pytest.mark.parametrize("answer", [_silent, _dripping, _failing, _hanging_up])
def test_a_service_that_gives_no_answer_is_an_error_in_time(answer):
  with _impostor(answer) as url:
    remote = papers_service.RemoteLibrary(url, timeout_s=0.5)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=f"{url} gave no answer within 0.5"):
      remote.search("notes", 1)
    # A client without a limit would hang here for ever.
    assert time.monotonic() - start < 30
    remote.close()


@pytest.mark.parametrize(
  "body", [b"", b"hello", b"{}", b'{"papers": [{"id": "a"}]}', b"\xff"]
)
def test_a_server_that_is_no_paper_service_is_told_at_once(body):
  def answer(connection, done):
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)

  with _impostor(answer) as url:
    remote = papers_service.RemoteLibrary(url, timeout_s=30)
    with pytest.raises(RuntimeError, match="no answer of a paper service"):
      remote.search("notes", 1)
    remote.close()


def test_a_taken_port_and_a_missing_folder_are_one_line(url, tmp_path):
  port = url.rsplit(":", 1)[1]
  command = [sys.executable, "-m", "steppo_jax", "serve", "papers"]
  taken = subprocess.run(
    [*command, "--port", port], capture_output=True, text=True, check=False
  )
  assert taken.returncode == 1
  assert "cannot listen at 127.0.0.1" in taken.stderr
  missing = subprocess.run(
    [*command, "--data-dir", str(tmp_path)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert missing.returncode == 2
  assert "has no papers.jsonl" in missing.stderr


def test_without_a_folder_a_generated_library_is_served():
  with (
    _process() as (_, url),
    contextlib.closing(papers_service.RemoteLibrary(url)) as remote,
  ):
    assert len(remote.search("attention", 5)) == 5


@pytest.mark.parametrize(
  "address",
  ["", "localhost:80", "https://host:1", "http://", "http://host:port"],
)
def test_what_is_no_address_is_refused(address):
  with pytest.raises(ValueError, match="service must be http://HOST:PORT"):
    papers_service.RemoteLibrary(address)
  with pytest.raises(ValueError, match="service_timeout_s must be above 0"):
    papers_service.RemoteLibrary("http://host:1", timeout_s=0)
