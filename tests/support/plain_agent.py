"""An agent of the standard library alone: a few calls, a reward, an end.

A run starts it as a program. What it does follows from the name of its episode;
one in seven gives up. It appends the name and the reward of an episode whose
end was acknowledged to the file that its argument names. Many of them run in a
test, so that it imports little: HTTP is spelt out.
"""

import json
import os
import random
import socket
import sys
import time


def post(url, body):
  """The answer to a JSON body; RuntimeError with the status if it is none."""
  host, _, path = url.removeprefix("http://").partition("/")
  name, _, port = host.partition(":")
  data = json.dumps(body).encode()
  head = "\r\n".join((
    f"POST /{path} HTTP/1.1", f"Host: {host}", "Connection: close",
    f"Authorization: Bearer {os.environ['OPENAI_API_KEY']}",
    "Content-Type: application/json", f"Content-Length: {len(data)}", "", "",
  ))  # fmt: skip
  with socket.create_connection((name, int(port)), timeout=120) as sock:
    sock.sendall(head.encode() + data)
    with sock.makefile("rb") as file:
      said, _, answer = file.read().partition(b"\r\n\r\n")
  status = said.split(b" ")[1:2]
  if status != [b"200"]:
    raise RuntimeError(f"status {status}: {answer[:200]}")
  return json.loads(answer)


def main(acknowledged):
  session = os.environ["STEPPO_SESSION"]
  uid = session.rpartition("/")[2]
  draw = random.Random(uid)
  turns, gives_up = draw.randint(1, 3), draw.random() < 1 / 7
  # A run whose whole panel fails is ended.
  gives_up = gives_up and not uid.startswith("evaluation")
  messages = [{"role": "user", "content": "go"}]
  for turn in range(turns):
    answer = post(
      f"{os.environ['OPENAI_BASE_URL']}/chat/completions",
      {"model": "any", "messages": messages, "max_tokens": 4},
    )
    if gives_up:
      sys.exit(3)
    said = answer["choices"][0]["message"]["content"]
    messages += [
      {"role": "assistant", "content": said},
      {"role": "user", "content": f"on {turn}"},
    ]
    time.sleep(draw.uniform(0, 0.02))
  reward = draw.uniform(0, 1)
  post(
    f"{session}/finish",
    {"status": "terminated", "reward": reward, "success": reward > 0.5},
  )
  # One write of one line: what a kill leaves of it is all or nothing.
  file = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
  os.write(file, f"{uid} {reward!r}\n".encode())


if __name__ == "__main__":
  main(sys.argv[1])
