"""The viewer over HTTP: what the page asks for, and who may ask.

Everything is read by GET. Two things are not: a label, and the order to compute
credit, which starts a process. They are sent by POST with a token that only the
page knows.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from starlette import applications, concurrency, requests, responses, routing

from steppo_jax.storage import labels
from steppo_jax.viewer import episode, listing, runs, tree

_MAX_BYTES = 1 << 17
# Nothing but the page's own files runs or is loaded.
POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
  "Content-Security-Policy": POLICY,
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-cache",
}
_TYPES = {
  "html": "text/html", "js": "text/javascript", "css": "text/css",
  "svg": "image/svg+xml",
}  # fmt: skip
# Names of this machine. The port may be that of a tunnel to another one.
_OWN = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
_TOKEN_MARK = "TOKEN-OF-THIS-SERVER"


class Refused(Exception):
  """An answer that says what is wrong."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


def page_files() -> dict[str, str]:
  """The page's own files by name."""
  folder = resources.files("steppo_jax.viewer") / "page"
  return {
    one.name: one.read_text(encoding="utf-8")
    for one in sorted(folder.iterdir(), key=lambda path: path.name)
    if one.name.rpartition(".")[2] in _TYPES
  }


class _Guard:
  """Lets through what comes from this machine's own page.

  A page of another site can make the browser send requests to this server, and
  can give its own name this machine's address; both are told by the headers.
  """

  def __init__(self, app: Any):
    self._app = app

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      return await self._app(scope, receive, send)
    sent = requests.Request(scope).headers
    fault = self._fault(sent, scope)
    if fault:
      answer = _answer({"error": fault}, 403)
      return await answer(scope, receive, send)
    return await self._app(scope, receive, send)

  def _fault(self, sent: Mapping[str, str], scope) -> str | None:
    host = sent.get("host", "")
    if not _OWN.fullmatch(host):
      return "this server answers under its own address alone"
    origin = sent.get("origin")
    if origin is not None and origin != f"http://{host}":
      return "other origins are not answered"
    site = sent.get("sec-fetch-site", "none")
    followed = scope["path"] == "/" and sent.get("sec-fetch-mode") == "navigate"
    if site not in ("none", "same-origin") and not followed:
      return "other sites are not answered"
    return None


def _answer(
  value: Any, status: int = 200, sent: Mapping[str, str] | None = None
) -> responses.Response:
  """JSON, or only that nothing has changed since the last answer."""
  # ASCII: half a surrogate pair of an observation has no UTF-8.
  body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
  tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
  headers = {**_HEADERS, "ETag": tag}
  if status == 200 and sent is not None and sent.get("if-none-match") == tag:
    return responses.Response(status_code=304, headers=headers)
  return responses.Response(body, status, headers, "application/json")


class Viewer:
  """The handlers.

  Args:
    shown: The runs, by their numbers.
  """

  def __init__(self, shown: Sequence[runs.Run]):
    self._runs = list(shown)
    self._token = secrets.token_urlsafe(24)
    self._files = page_files()
    self._reads = {
      "about": self._about,
      "state": self._state,
      "names": lambda asked: runs.names(self._runs),
      "curves": self._curves,
      "times": lambda asked: self._run(asked).times(),
      "episodes": lambda asked: listing.page(self._run(asked).index, asked),
      "choices": lambda asked: listing.choices(self._run(asked).index),
      "episode": lambda asked: episode.detail(
        self._run(asked), _number(asked, "id")
      ),
      "task": self._task,
    }

  def app(self) -> Any:
    """The ASGI application."""
    routes = [
      routing.Route("/", self._page, methods=["GET"]),
      routing.Route("/page/{name}", self._file, methods=["GET"]),
      routing.Route("/api/labels", self._label, methods=["POST"]),
      routing.Route("/api/credit", self._credit, methods=["POST"]),
      routing.Route("/api/{what}", self._get, methods=["GET"]),
    ]
    made = applications.Starlette(
      routes=routes,
      exception_handlers={404: _not_found, 405: _not_found, 500: _failed},
    )
    return _Guard(made)

  async def _page(self, request: requests.Request) -> responses.Response:
    text = self._files["index.html"].replace(_TOKEN_MARK, self._token)
    return responses.Response(text, 200, _HEADERS, _TYPES["html"])

  async def _file(self, request: requests.Request) -> responses.Response:
    name = request.path_params["name"]
    kind = name.rpartition(".")[2]
    if name not in self._files or kind == "html":
      return await _not_found(request, None)
    return responses.Response(self._files[name], 200, _HEADERS, _TYPES[kind])

  async def _get(self, request: requests.Request) -> responses.Response:
    handler = self._reads.get(request.path_params["what"])
    if handler is None:
      return await _not_found(request, None)
    return await self._answered(request, handler, dict(request.query_params))

  async def _answered(
    self, request: requests.Request, handler: Callable, asked: Any
  ) -> responses.Response:
    try:
      value = await concurrency.run_in_threadpool(handler, asked)
    except Refused as refused:
      return _answer({"error": str(refused)}, refused.status)
    except LookupError as error:
      return _answer({"error": str(error.args[0])}, 404)
    except ValueError as error:
      return _answer({"error": str(error)}, 400)
    except RuntimeError as error:
      return _answer({"error": str(error)}, 500)
    return _answer(value, sent=request.headers)

  def _run(self, asked: Mapping[str, Any]) -> runs.Run:
    number = _number(asked, "run")
    if not 0 <= number < len(self._runs):
      raise Refused(404, f"there is no run {number}")
    return self._runs[number]

  def _about(self, asked) -> list[dict[str, Any]]:
    return [episode.plain(run.about()) for run in self._runs]

  def _state(self, asked) -> list[dict[str, Any]]:
    for run in self._runs:
      run.look()
    return [run.state() for run in self._runs]

  def _curves(self, asked) -> list[dict[str, Any]]:
    chosen = asked.get("runs")
    shown = self._runs
    if chosen is not None:
      numbers = set(chosen.split(","))
      shown = [run for run in shown if str(run.number) in numbers]
    return runs.curves(
      shown, asked.get("name", ""), asked.get("x", "update"),
      apart=asked.get("apart") == "1",
    )  # fmt: skip

  def _task(self, asked) -> dict[str, Any]:
    run, task = self._run(asked), asked.get("task", "")
    played = listing.neighbours(run.index, task)
    if not played:
      raise LookupError(f"no episode of task {task}")
    if "at" not in asked:
      return {"played": played}
    at = None if asked["at"] == "" else _number(asked, "at")
    split = asked.get("split", "train")
    return {"played": played} | tree.group(run, task, at, split)

  async def _label(self, request: requests.Request) -> responses.Response:
    return await self._posted(request, self._set_label)

  async def _credit(self, request: requests.Request) -> responses.Response:
    return await self._posted(request, self._start_credit)

  async def _posted(
    self, request: requests.Request, handler: Callable
  ) -> responses.Response:
    """What the page itself sends; another page does not know the token."""
    given = request.headers.get("x-token", "")
    if request.headers.get("origin") is None or not hmac.compare_digest(
      given.encode(), self._token.encode()
    ):
      return _answer(
        {"error": "this page is of an earlier start: load it again"}, 403
      )
    if request.headers.get("content-type") != "application/json":
      return _answer({"error": "expected a body of JSON"}, 415)
    body = b""
    async for part in request.stream():
      body += part
      if len(body) > _MAX_BYTES:
        return _answer({"error": f"more than {_MAX_BYTES} bytes"}, 413)
    try:
      asked = json.loads(body)
    except (ValueError, RecursionError):
      asked = None
    if not isinstance(asked, dict):
      return _answer({"error": "expected an object of JSON"}, 400)
    return await self._answered(request, handler, asked)

  def _set_label(self, asked: Mapping[str, Any]) -> dict[str, Any]:
    run = self._run(asked)
    label = labels.checked(asked.get("verdict", ""), asked.get("note", ""))
    rows = run.index.query(
      "SELECT uid, split FROM episodes WHERE id = ?", _number(asked, "id")
    )
    if not rows:
      raise LookupError("there is no such episode any more")
    told = run.set_label(*rows[0], label)
    run.index.refresh()
    return {**label._asdict(), "told": told}

  def _start_credit(self, asked: Mapping[str, Any]) -> dict[str, Any]:
    run, update = self._run(asked), _number(asked, "update")
    if not run.index.query(
      "SELECT 1 FROM episodes WHERE at = ? LIMIT 1", update
    ):
      raise LookupError(f"no episode of update {update}")
    run.credit.start(update)
    return {"started": update}


def _number(asked: Mapping[str, Any], name: str) -> int:
  value = asked.get(name, 0 if name == "run" else None)
  try:
    found = int(value)
    if isinstance(value, bool | float) or not abs(found) < 1 << 62:
      raise ValueError
  except (TypeError, ValueError) as error:
    raise Refused(400, f"{name}={value!r} is no whole number") from error
  return found


async def _not_found(request: requests.Request, raised) -> responses.Response:
  status = getattr(raised, "status_code", 404)
  told = f"there is no {request.method} {request.url.path[:200]}"
  return _answer({"error": told}, status)


async def _failed(request: requests.Request, raised) -> responses.Response:
  return _answer({"error": f"the viewer failed: {raised!r}"}, 500)
