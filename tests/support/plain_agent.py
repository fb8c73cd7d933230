"""An agent of the standard library alone: a few calls, a reward, an end.

A run starts it as a program. What it does follows from the name of its episode;
one in seven gives up. It appends the name and the reward of an episode whose
end was acknowledged to the file that its argument names.
"""

import json
import os
import random
import sys
import time
import urllib.request

# Nothing between this machine and itself.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(url, body):
  request = urllib.request.Request(
    url, json.dumps(body).encode(),
    {
      "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}",
      "Content-Type": "application/json",
    },
  )  # fmt: skip
  with OPENER.open(request, timeout=120) as answer:
    return json.load(answer)


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
