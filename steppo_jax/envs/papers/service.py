"""The two tools of paper search as a local HTTP service, and its client.

    POST /search {"query": "...", "top": 10}  ->  {"papers": [{"id", "title",
    POST /expand {"paper_id": "..."}               "text"}, ...]}
    GET /health                               ->  {"papers": 4429}

Anything else is answered with {"error": "..."} and a status from 400 on. There
is no authentication: the service is meant for one machine or a closed network.
"""

import contextlib
import http.client
import http.server
import json
import time
import urllib.parse
from typing import Any

from steppo_jax.envs.papers import library as papers_library
from steppo_jax.envs.retrieval import index as retrieval_index

MOST_BYTES = 1 << 20
MOST_TOP = 1000
# A client that sends nothing more loses its connection.
_IDLE_S = 60.0
_BACK_OFF_S = 0.1


class Server(http.server.ThreadingHTTPServer):
  """A service over a library; `serve_forever` runs it, a thread a client.

  Args:
    library: What is searched.
    host: Address to listen at.
    port: Port; 0 takes a free one.

  Attributes:
    url: Address for `RemoteLibrary`.

  Raises:
    RuntimeError: the address is taken or not of this machine.
  """

  daemon_threads = True

  def __init__(
    self, library: papers_library.PaperLibrary, *, host: str, port: int
  ):
    self.library = library
    try:
      super().__init__((host, port), _Handler)
    except OSError as error:
      raise RuntimeError(f"cannot listen at {host}:{port} ({error})") from error
    self.url = f"http://{host}:{self.server_address[1]}"

  def handle_error(self, request, client_address):
    """A client that went away is no event."""


class _Refused(Exception):
  """A request that is answered with a status from 400 on."""

  def __init__(self, status, message):
    super().__init__(message)
    self.status = status


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  timeout = _IDLE_S
  # Head and body leave in one packet; two would wait for each other.
  wbufsize = -1
  disable_nagle_algorithm = True

  def do_GET(self):
    if self.path == "/health":
      self._send(200, {"papers": len(self.server.library.papers)})
    else:
      self._send(404, {"error": f"there is no GET {self.path[:80]}"})

  def do_POST(self):
    try:
      papers = self._answer(self._body())
    except _Refused as error:
      self._send(error.status, {"error": str(error)})
      return
    self._send(200, {"papers": [paper._asdict() for paper in papers]})

  def _answer(self, body):
    library = self.server.library
    if self.path == "/search":
      query, top = body.get("query"), body.get("top", 10)
      if not isinstance(query, str):
        raise _Refused(400, "'query' must be a string")
      whole = isinstance(top, int) and not isinstance(top, bool)
      if not whole or not 1 <= top <= MOST_TOP:
        raise _Refused(400, f"'top' must be a number from 1 to {MOST_TOP}")
      return library.search(query, top)
    if self.path == "/expand":
      paper = body.get("paper_id")
      if not isinstance(paper, str):
        raise _Refused(400, "'paper_id' must be a string")
      try:
        return library.expand(paper)
      except KeyError:
        raise _Refused(404, f"there is no paper {paper[:80]!r}") from None
    raise _Refused(404, f"there is no POST {self.path[:80]}")

  def _body(self) -> dict[str, Any]:
    length = self.headers.get("Content-Length", "")
    # What is left of a body must not be read as the next request.
    keep, self.close_connection = self.close_connection, True
    if not length.isascii() or not length.isdigit():
      raise _Refused(411, "Content-Length is missing")
    if len(length) > 9 or int(length) > MOST_BYTES:
      raise _Refused(413, f"a request has at most {MOST_BYTES} bytes")
    data = self.rfile.read(int(length))
    self.close_connection = keep
    try:
      body = json.loads(data)
    except (ValueError, RecursionError):
      raise _Refused(400, "the request is not JSON") from None
    if not isinstance(body, dict):
      raise _Refused(400, "the request is not a JSON object")
    return body

  def _send(self, status, record):
    data = json.dumps(record).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, format, *args):
    """Says nothing: a line for every search helps nobody."""


class _Unfit(Exception):
  """The service answered, and asking again would change nothing."""


class RemoteLibrary:
  """A `library.Library` over HTTP.

  It may be shared by threads: every request under way has a connection, which
  is kept for the next. A request that fails is tried again, so long as there
  is time.

  Args:
    url: Address of the service, such as the one that it prints.
    timeout_s: Seconds that a request may take, all attempts together.

  Raises:
    ValueError: the address is none, or the time is not positive.
  """

  def __init__(self, url: str, *, timeout_s: float = 10.0):
    parts = urllib.parse.urlsplit(url)
    try:
      host, port = parts.hostname, parts.port or 80
    except ValueError:
      host = None
    if parts.scheme != "http" or not host:
      raise ValueError(f"service must be http://HOST:PORT, got {url!r}")
    if not timeout_s > 0.0:
      raise ValueError(f"service_timeout_s must be above 0, got {timeout_s}")
    self._url, self._host, self._port = url.rstrip("/"), host, port
    self._timeout_s = timeout_s
    self._idle: list[http.client.HTTPConnection] = []

  def search(self, query: str, top: int) -> list[retrieval_index.Document]:
    """The best papers.

    Raises:
      RuntimeError: the service is down, slow or no paper service.
    """
    return self._ask("/search", {"query": query, "top": top})

  def expand(self, paper_id: str) -> list[retrieval_index.Document]:
    """The papers that it cites or that cite it.

    Raises:
      KeyError: there is no such paper.
      RuntimeError: the service is down, slow or no paper service.
    """
    papers = self._ask("/expand", {"paper_id": paper_id})
    if papers is None:
      raise KeyError(paper_id)
    return papers

  def close(self) -> None:
    """Closes the connections; the next request opens a new one."""
    while self._idle:
      self._idle.pop().close()

  def _ask(self, path, body):
    data = json.dumps(body).encode()
    end = time.monotonic() + self._timeout_s
    attempt, error = 0, None
    while time.monotonic() < end:
      # Taken and given back in one operation each, so that no lock is needed.
      try:
        connection = self._idle.pop()
      except IndexError:
        connection = http.client.HTTPConnection(self._host, self._port)
      try:
        found = _attempt(connection, path, data, end)
      except _Unfit as unfit:
        connection.close()
        raise RuntimeError(f"paper service {self._url}: {unfit}") from unfit
      except (OSError, http.client.HTTPException) as failure:
        connection.close()
        error = failure
      else:
        self._idle.append(connection)
        return found
      attempt += 1
      left = max(end - time.monotonic(), 0.0)
      time.sleep(min(_BACK_OFF_S * 2 ** (attempt - 1), left))
    raise RuntimeError(
      f"paper service {self._url} gave no answer within {self._timeout_s:g} s "
      f"in {attempt} attempts ({error!r}); is it running?"
    ) from error


def _attempt(connection, path, data, end):
  """Papers, or None if there is no such paper."""
  left = max(end - time.monotonic(), 0.001)
  connection.timeout = left
  if connection.sock is not None:
    connection.sock.settimeout(left)
  connection.request("POST", path, data, {"Content-Type": "application/json"})
  answer = connection.getresponse()
  text = _read(answer, connection, end)
  if answer.status == 404 and path == "/expand":
    with contextlib.suppress(ValueError, AttributeError):
      if "there is no paper" in json.loads(text).get("error", ""):
        return None
  if answer.status >= 500:
    raise http.client.HTTPException(f"status {answer.status}")
  if answer.status != 200:
    told = text[:200].decode("utf-8", "backslashreplace")
    raise _Unfit(f"status {answer.status}: {told}")
  try:
    return [
      retrieval_index.Document(paper["id"], paper["title"], paper["text"])
      for paper in json.loads(text)["papers"]
    ]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise _Unfit(f"no answer of a paper service: {text[:200]!r}") from error


def _read(answer, connection, end) -> bytes:
  """The body. One that comes in drops ends with the time, not with itself."""
  parts = []
  while part := answer.read1(1 << 16):
    parts.append(part)
    left = end - time.monotonic()
    if left <= 0.0:
      raise TimeoutError("the answer came too slowly")
    if connection.sock is not None:
      connection.sock.settimeout(left)
  return b"".join(parts)
