"""An endpoint of OpenAI's form whose answers are given from elsewhere.

verifiers asks a model whenever its agent is to act. Here no model is behind the
address: a call waits until the policy has been asked and has answered.
"""

import http.server
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# The only address that it listens at.
HOST = "127.0.0.1"


class Asked(NamedTuple):
  """A call that waits for its answer.

  Attributes:
    messages: All messages of the conversation.
    tools: What may be called, in OpenAI's form.
    answers: Takes the one message that answers it, None if none will come.
  """

  messages: list[dict[str, Any]]
  tools: list[dict[str, Any]]
  answers: queue.SimpleQueue


class Calls:
  """The calls of the episode under way, in the order in which they came.

  Every call that it takes is answered or told that the episode is over, also
  if several come at once or one comes while the episode is left.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._name: str | None = None
    self._come: queue.SimpleQueue = queue.SimpleQueue()

  def begin(self) -> tuple[str, Callable[[Any], None]]:
    """Begins an episode.

    Returns:
      The model's name in its calls, which nobody can guess, and what puts
      something behind them, such as the episode's end.
    """
    with self._lock:
      self._name = f"episode-{secrets.token_hex(16)}"
      self._come = queue.SimpleQueue()
      return self._name, self._come.put

  def take(self, name: str, asked: Asked) -> bool:
    """Takes a call in; False for one of an episode that is over."""
    with self._lock:
      if name != self._name:
        return False
      self._come.put(asked)
      return True

  def next(self) -> Any:
    """Waits for a call, or for what was put behind the calls."""
    return self._come.get()

  def end(self) -> None:
    """Ends the episode: calls that nobody took are told so."""
    with self._lock:
      self._name = None
      while not self._come.empty():
        found = self._come.get()
        if isinstance(found, Asked):
          found.answers.put(None)


class Endpoint:
  """Serves calls of this machine, a thread each.

  Attributes:
    url: Where models are asked, with "/v1" at its end.
  """

  def __init__(self, take: Callable[[str, Asked], bool]):
    """Begins to listen.

    Args:
      take: Is given the model's name of each call, and the call; says whether
        anybody will answer it.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"
      # Else the body waits some 40 ms for the headers to be acknowledged.
      disable_nagle_algorithm = True

      def log_message(self, *_):
        pass

      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Asked(
          body["messages"], body.get("tools") or [], queue.SimpleQueue()
        )
        name = str(body.get("model"))
        message = asked.answers.get() if take(name, asked) else None
        if message is None:
          error = {"message": "this episode is over", "code": "episode_over"}
          self.send_json(410, {"error": error})
        elif body.get("stream"):
          self.send("text/event-stream", 200, _events(name, message))
        else:
          self.send_json(200, _whole(name, message))

      def send_json(self, status, data):
        self.send("application/json", status, json.dumps(data))

      def send(self, kind, status, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://{HOST}:{self._server.server_port}/v1"
    # It looks so often whether it is to end.
    self._thread = threading.Thread(
      target=self._server.serve_forever, args=(0.05,), daemon=True
    )
    self._thread.start()

  def close(self) -> None:
    """Listens no more; calls that wait are left."""
    self._server.shutdown()
    self._thread.join()
    self._server.server_close()


def _answer(name, kind, choice) -> dict[str, Any]:
  return {
    "id": f"steppo-{name}",
    "object": kind,
    "created": int(time.time()),
    "model": name,
    "choices": [{"index": 0, **choice}],
  }


def _finish(message: Mapping[str, Any]) -> str:
  return "tool_calls" if message.get("tool_calls") else "stop"


def _whole(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
  usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
  choice = {"message": message, "finish_reason": _finish(message)}
  return _answer(name, "chat.completion", choice) | {"usage": usage}


def _events(name: str, message: Mapping[str, Any]) -> str:
  """The same as a stream of two events."""
  calls = [
    {"index": k, **call}
    for k, call in enumerate(message.get("tool_calls") or ())
  ]
  delta = dict(message) | ({"tool_calls": calls} if calls else {})
  told = [
    {"delta": delta, "finish_reason": None},
    {"delta": {}, "finish_reason": _finish(message)},
  ]
  events = [
    json.dumps(_answer(name, "chat.completion.chunk", choice))
    for choice in told
  ]
  return "".join(f"data: {one}\n\n" for one in [*events, "[DONE]"])
