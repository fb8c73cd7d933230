"""A server that follows what was recorded of vLLM's: adapters, completions.

It is no vLLM. Names, statuses and fields are those that its server's code has;
what it samples is ours.
"""

import contextlib
import http.server
import json
import threading

import numpy as np
import worlds

from steppo_jax import types
from steppo_jax.models.formats import peft

BASE = "base"


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _send(self, status, body):
    text = body if isinstance(body, str) else json.dumps(body)
    self.send_response(status)
    self.send_header("Content-Length", str(len(text.encode())))
    self.end_headers()
    self.wfile.write(text.encode())

  def _fault(self, status, message):
    body = {"message": message, "type": "BadRequestError", "code": status}
    self._send(status, {"error": body})

  def do_GET(self):
    names = [BASE, *self.server.adapters]
    cards = [{"id": n, "max_model_len": worlds.CONTEXT} for n in names]
    self._send(200, {"object": "list", "data": cards})

  def do_POST(self):
    size = int(self.headers["Content-Length"])
    asked = json.loads(self.rfile.read(size))
    self.server.asked.append((self.path, asked))
    name, adapters = asked.get("lora_name"), self.server.adapters
    if self.path == "/v1/load_lora_adapter":
      if name in adapters:
        return self._fault(400, f"The lora adapter '{name}' has already been "
                           "loaded.")  # fmt: skip
      adapters[name] = asked["lora_path"]
      return self._send(200, f"Success: LoRA adapter '{name}' added.")
    if self.path == "/v1/unload_lora_adapter":
      self.server.on_unload()
      if adapters.pop(name, None) is None:
        return self._fault(404, f"The lora adapter '{name}' cannot be found.")
      return self._send(200, f"Success: LoRA adapter '{name}' removed.")
    if asked["model"] not in adapters:
      return self._fault(404, f"The model `{asked['model']}` does not exist.")
    return self._send(200, self.server.change(self._completion(asked)))

  def _completion(self, asked):
    seed = asked["seed"]
    request = types.Request(
      "one", np.array(asked["prompt"], np.int32),
      (seed >> 32, seed & 0xFFFFFFFF), asked["max_tokens"],
      asked["temperature"], tuple(asked["stop_token_ids"]),
    )  # fmt: skip
    with self.server.lock:
      engine = self.server.engine
      # As vLLM does where it has room for few: they are read again.
      folder = self.server.adapters[asked["model"]]
      engine.set_params(peft.load(folder, worlds.model(), worlds.policy()), 0)
      (found,) = engine.generate([request])
      engine.release("one")
    ids = found.response_ids.tolist()
    logp = found.behaviour_logp.tolist()
    choice = {
      "index": 0, "text": "", "finish_reason": found.stop_reason,
      "stop_reason": ids[-1] if found.stop_reason == "stop" else None,
      "token_ids": ids, "prompt_token_ids": asked["prompt"],
      "logprobs": {
        "tokens": [f"token_id:{i}" for i in ids], "token_logprobs": logp,
        "top_logprobs": [{}] * len(ids), "text_offset": [0] * len(ids),
      },
    }  # fmt: skip
    return {"model": asked["model"], "choices": [choice]}


@contextlib.contextmanager
def serving():
  """The server: `url`, the `adapters` it has, what it was `asked`.

  Its `change` is applied to every completion; `on_unload` is called first where
  adapters are to be unloaded.
  """
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
  server.daemon_threads = True
  server.adapters, server.asked = {}, []
  server.engine, server.lock = worlds.engine(), threading.Lock()
  server.change, server.on_unload = lambda found: found, lambda: None
  host, port = server.server_address
  server.url = f"http://{host}:{port}"
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
