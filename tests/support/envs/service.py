"""An environment service in OpenEnv's form, as a program: `python service.py`.

Prints its port. One episode at a time: answers count up to `goal`. What it is
told in `POST /behave` it does at the requests that follow.
"""

import http.server
import json
import sys
import time

STATE = {"episode_id": None, "step_count": 0}
# What to do: a list of [path, act, argument], each used once.
ACTS = []
COUNT = {"resets": 0, "steps": 0}


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def do_GET(self):
    if self.path == "/env/counts":
      return self.answer(200, COUNT)
    if self.path != "/env/state":
      return self.answer(404, {"detail": "Not Found"})
    return self.answer(200, STATE) if not self.acts() else None

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    if self.path == "/env/behave":
      ACTS.append(body["act"])
      return self.answer(200, {})
    if self.path == "/env/reset":
      COUNT["resets"] += 1
      STATE.update(episode_id=body.get("episode_id"), step_count=0)
      result = {"observation": {"text": f"seed {body['seed']}"},
                "reward": None, "done": False}  # fmt: skip
    elif self.path == "/env/step":
      COUNT["steps"] += 1
      STATE["step_count"] += 1
      text = body["action"]["message"]
      done = text == "win"
      result = {
        "observation": {"text": f"you said {text}"},
        "reward": float(done),
        "done": done,
        "metadata": {"commands": ["win", "wait"]},
      }
    else:
      return self.answer(404, {"detail": "Not Found"})
    return self.answer(200, result) if not self.acts() else None

  def acts(self):
    """Does what was asked for this path; whether that was the answer."""
    for act in ACTS:
      if "/env" + act[0] == self.path:
        ACTS.remove(act)
        return getattr(self, "act_" + act[1])(act[2]) or True
    return False

  def act_status(self, status):
    self.answer(status, {"detail": "as asked"})

  def act_raw(self, text):
    self.answer(200, text.encode())

  def act_sleep(self, seconds):
    time.sleep(seconds)
    self.close_connection = True

  def act_drip(self, seconds):
    self.send_response(200)
    self.send_header("Content-Length", "1000")
    self.end_headers()
    for _ in range(int(seconds / 0.05)):
      self.wfile.write(b" ")
      self.wfile.flush()
      time.sleep(0.05)
    self.close_connection = True

  def act_hang_up(self, _):
    self.close_connection = True

  def act_cut(self, _):
    self.send_response(200)
    self.send_header("Content-Length", "1000")
    self.end_headers()
    self.wfile.write(b'{"observation"')
    self.close_connection = True

  def answer(self, status, value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)


if __name__ == "__main__":
  server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
  server.daemon_threads = True
  print(server.server_port, flush=True)
  sys.stdin.close()
  server.serve_forever()
