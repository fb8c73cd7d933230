"""An environment as an OpenEnv server, as a program: `python service.py`.

Prints its port. Each connection to /env/ws is a session. A message of the type
"behave" tells it what to do instead of answering, at the requests that follow
on any connection; "counts" asks how many there were.
"""

import http
import json
import sys
import time

from websockets import exceptions
from websockets.sync import server as sync_server

# What to do: a list of [request, act, argument], each used once.
ACTS = []
COUNT = {"resets": 0, "steps": 0, "most": 0}
OPEN = set()
CAPACITY = int(sys.argv[1]) if len(sys.argv) > 1 else 100
FIELD = {"title": "Text", "type": "string"}
SCHEMA = {
  "action": {"properties": {"message": FIELD, "metadata": {"type": "object"}}},
  "observation": {"properties": {"text": FIELD, "done": {"type": "boolean"}}},
}


def schema(connection, request):
  """Answers plain HTTP; None opens a session."""
  if request.path == "/env/schema" and "schema" not in sys.argv[2:]:
    return connection.respond(http.HTTPStatus.OK, json.dumps(SCHEMA))
  if request.path != "/env/ws":
    return connection.respond(http.HTTPStatus.NOT_FOUND, "not found")
  return None


def say(socket, kind, data):
  socket.send(json.dumps({"type": kind, "data": data}))


def fail(socket, code, message, **more):
  say(socket, "error", {"message": message, "code": code, **more})


def acted(socket, kind):
  """Does what was asked for this request; whether that was the answer."""
  for act in [one for one in ACTS if one[0] == kind][:1]:
    ACTS.remove(act)
    _, what, argument = act
    if what == "sleep":
      time.sleep(argument)
      return False
    if what == "hang_up":
      socket.close()
    elif what == "error":
      fail(socket, *argument)
    else:
      socket.send(argument)
    return True
  return False


def play(socket):
  """One session."""
  steps = 0
  for text in socket:
    message = json.loads(text)
    kind, data = message["type"], message.get("data")
    if kind == "behave":
      ACTS.append(data)
      say(socket, "state", {})
    elif kind == "counts":
      say(socket, "state", COUNT)
    elif kind == "close":
      return
    elif kind == "reset":
      OPEN.add(socket)
      COUNT["most"] = max(COUNT["most"], len(OPEN))
      COUNT["resets"] += 1
      steps = 0
      if not acted(socket, kind):
        told = {"observation": {"text": f"seed {data['seed']}"}}
        say(socket, "observation", {**told, "reward": None, "done": False})
    elif kind == "step":
      COUNT["steps"] += 1
      if acted(socket, kind):
        continue
      if set(data) != {"message"} or not data["message"]:
        why = [{"loc": ["message"], "msg": "Field required"}]
        fail(socket, "VALIDATION_ERROR", "Invalid message", errors=why)
        continue
      steps += 1
      done = data["message"] == "win"
      say(socket, "observation", {
        "observation": {"text": f"{steps}: you said {data['message']}"},
        "reward": float(done),
        "done": done,
        "metadata": {"commands": ["win", "wait"]},
      })  # fmt: skip


def session(socket):
  """One connection, if there is a place."""
  try:
    if len(OPEN) >= CAPACITY:
      fail(socket, "CAPACITY_REACHED", "Server at capacity")
      return
    play(socket)
  except exceptions.ConnectionClosed:
    pass
  finally:
    OPEN.discard(socket)


if __name__ == "__main__":
  with sync_server.serve(
    session, "localhost", 0, process_request=schema, max_size=1 << 26
  ) as running:
    print(running.socket.getsockname()[1], flush=True)
    running.serve_forever()
