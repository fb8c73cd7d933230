"""Clients that are idle, slow or silent: everybody else is answered."""

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time

import agent_calls
import httpx
import pytest
import served_policies
from starlette import responses

from steppo_jax.serving import answers, background, http

SAY = [agent_calls.user("hello")]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
  """A server that nobody here asks for an answer of its model."""
  tokenizer = served_policies.tokenizer(tmp_path_factory.mktemp("t") / "nano")
  policy = answers.Policy("nano", tokenizer, None, context=99, max_new_tokens=9)
  with served_policies.served(policy) as address:
    yield address


@pytest.mark.parametrize("form", ["chat/completions", "messages"])
def test_a_fault_of_the_server_itself_is_told_in_the_form_asked_for(
  url, form, monkeypatch, caplog
):
  def broken(*_):
    raise TypeError("a table is missing")

  monkeypatch.setattr(answers.Policy, "chat_ids", broken)
  body = {"model": "nano", "messages": SAY, "max_tokens": 1}
  found = agent_calls.send(f"{url}/v1/{form}", json=body)
  assert found.status_code == 500
  kind = "api_error" if form == "messages" else "server_error"
  assert found.json()["error"]["type"] == kind
  assert "table" not in found.text
  assert "a table is missing" in caplog.text


@pytest.mark.parametrize(
  ("method", "path", "status"),
  [
    ("GET", "/v1/messages", 405),
    ("POST", "/v1/messages/batches", 404),
    ("GET", "/v1/chat/completions", 405),
    ("POST", "/v1/messagesque", 404),
  ],
)
def test_what_is_not_there_is_told_in_the_form_of_its_neighbours(
  url, method, path, status
):
  found = httpx.request(method, url + path, verify=False)
  body = found.json()
  code = {404: "not_found", 405: "method_not_allowed"}[status]
  assert (found.status_code, body["error"]["code"]) == (status, code)
  assert (status == 405) == ("allow" in found.headers)
  if path.startswith("/v1/messages") and path != "/v1/messagesque":
    assert body["type"] == "error"
    assert found.headers["request-id"] == body["request_id"]
  else:
    assert "request-id" not in found.headers
    assert body["error"]["param"] is None


def test_requests_of_anthropics_clients_have_ids(url):
  body = {"model": "nano", "messages": SAY}
  found = [
    agent_calls.send(f"{url}/v1/messages/count_tokens", json=one)
    for one in (body, body, {})
  ]
  ids = [one.headers["request-id"] for one in found]
  assert len({*ids}) == 3
  assert found[-1].json()["request_id"] == ids[-1]


def connected(url, stack):
  host, _, port = url.removeprefix("http://").partition(":")
  made = stack.enter_context(socket.create_connection((host, int(port))))
  made.settimeout(20)
  return made


def _on(loop, made):
  made.loop = loop
  return made


def answered(url):
  body = {"model": "nano", "messages": SAY}
  path = f"{url}/v1/messages/count_tokens"
  return agent_calls.send(path, json=body).status_code


@contextlib.contextmanager
def many_files(count):
  """Room for so many open files, or the test is skipped."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard != resource.RLIM_INFINITY and hard < count:
    pytest.skip(f"{hard} files may be open, {count} are needed")
  resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_thousand_idle_connections_hold_nobody(url, monkeypatch):
  monkeypatch.setattr(background._Patient, "head_s", 4.0)
  with many_files(4096), contextlib.ExitStack() as stack:
    idle = [connected(url, stack) for _ in range(1000)]
    for n, one in enumerate(idle):
      if n % 2:  # A head that never ends.
        one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
    assert answered(url) == 200
    # All are closed in the end.
    assert [one.recv(1) for one in idle] == [b""] * 1000
    assert answered(url) == 200


def test_a_body_that_does_not_come_is_given_up(url, monkeypatch):
  monkeypatch.setattr(http, "_PART_S", 0.3)
  monkeypatch.setattr(http, "_BODY_S", 0.9)
  head = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
    b"Content-Length: 100\r\n\r\n{"
  )
  with contextlib.ExitStack() as stack:
    silent, slow = connected(url, stack), connected(url, stack)
    silent.sendall(head)
    slow.sendall(head)
    began = time.monotonic()
    with contextlib.suppress(OSError):
      while time.monotonic() < began + 4:  # A byte now and then is too slow.
        slow.sendall(b" ")
        time.sleep(0.1)
    for one in (silent, slow):
      found = b""
      with contextlib.suppress(ConnectionError):
        while part := one.recv(4096):
          found += part
      if one is silent:
        assert b" 408 " in found.splitlines()[0]
        assert b"was not sent within 0.3 s" in found


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_client_that_offers_http2_is_read_whole(
  url, at_once, chunked, caplog
):
  """Java's own client does; one of uvicorn's parsers drops its body."""
  body = json.dumps({"model": "nano", "messages": SAY}).encode()
  size = b"Content-Length: %d" % len(body)
  if chunked:
    size = b"Transfer-Encoding: chunked"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
  head = (
    b"POST /v1/messages/count_tokens HTTP/1.1\r\nHost: a\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    + size
    + b"\r\n\r\n"
  )
  with contextlib.ExitStack() as stack:
    one = connected(url, stack)
    one.sendall(head + body if at_once else head)
    if not at_once:
      time.sleep(0.1)
      one.sendall(body)
    status, *_, found = one.recv(4096).split(b"\r\n")
    assert b" 200 " in status
    assert json.loads(found or one.recv(4096))["input_tokens"] > 0
  assert not caplog.records  # Nor is each of its requests warned of.


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_answers_do_not_wait_for_acknowledgements(loop, monkeypatch):
  made = background.config
  monkeypatch.setattr(background, "config", lambda app: _on(loop, made(app)))

  async def app(scope, receive, send):
    if scope["type"] == "http":
      await responses.JSONResponse({})(scope, receive, send)

  listening = background.listen("127.0.0.1", 0, key=None, option="")
  server = background.Background(app, listening)
  try:
    with contextlib.ExitStack() as stack:
      one = connected(server.url, stack)
      one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
      assert one.recv(4096)
      (found,) = server._server.server_state.connections
      of = found.transport.get_extra_info("socket")
      assert of.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
  finally:
    server.close()


def test_who_does_not_read_is_left(monkeypatch):
  monkeypatch.setattr(background._Patient, "read_s", 0.5)
  ended = asyncio.Event()

  async def app(scope, receive, send):
    if scope["type"] != "http":
      return

    async def endless():
      try:
        while True:
          yield b"x" * 65536
          await asyncio.sleep(0)
      finally:
        ended.set()

    await responses.StreamingResponse(endless())(scope, receive, send)

  listening = background.listen("127.0.0.1", 0, key=None, option="")
  server = background.Background(app, listening)
  try:
    with contextlib.ExitStack() as stack:
      one = connected(server.url, stack)
      one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
      server.call(asyncio.wait_for(ended.wait(), 20))
  finally:
    server.close()


def test_a_server_whose_loop_cannot_be_made_says_so(monkeypatch):
  made = background.config
  # The thread's own error is not the one that is looked for.
  monkeypatch.setattr(threading, "excepthook", lambda _: None)
  monkeypatch.setattr(
    background, "config", lambda app: _on("no.such:loop", made(app))
  )
  listening = background.listen("127.0.0.1", 0, key=None, option="")
  with (
    contextlib.closing(listening),
    pytest.raises(RuntimeError, match="start"),
  ):
    background.Background(None, listening)


def test_a_client_that_goes_as_it_is_answered_leaves_no_trace(caplog):
  """Its end and the answer come in one turn of the event loop."""

  class Request:
    async def receive(self):
      await gone.wait()
      return {"type": "http.disconnect"}

  async def both():
    answer = asyncio.get_running_loop().create_future()
    asking = asyncio.ensure_future(http.unless_gone(Request(), answer))
    for _ in range(3):
      await asyncio.sleep(0)
    gone.set()
    answer.set_result("yes")
    found = await asking
    await asyncio.sleep(0.01)
    return found

  gone = asyncio.Event()
  assert asyncio.run(both()) == "yes"
  assert not caplog.records

  async def earlier():
    answer = asyncio.get_running_loop().create_future()
    asking = asyncio.ensure_future(http.unless_gone(Request(), answer))
    gone.set()
    with pytest.raises(http.Gone):
      await asking
    assert answer.cancelled()

  gone = asyncio.Event()
  asyncio.run(earlier())
  assert not caplog.records
