"""Talks to a gateway with the package anthropic; prints what it got as JSON.

Arguments: the address of a session, and its key.
"""

import asyncio
import json
import sys

import anthropic

url, key = sys.argv[1:]
TOOLS = [
  {
    "name": "look",
    "description": "Looks.",
    "input_schema": {
      "type": "object",
      "properties": {"at": {"type": "string"}},
    },
  }
]
ASKED = {"model": "any", "max_tokens": 6, "system": "You are short."}
found = {}
client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
messages = [{"role": "user", "content": "go"}]
first = client.messages.create(
  messages=messages, extra_body={"return_token_ids": True}, **ASKED
)
found["whole"] = first.model_dump()
with client.messages.stream(messages=messages, **ASKED) as stream:
  found["pieces"] = list(stream.text_stream)
  found["streamed"] = stream.get_final_message().model_dump()
messages += [
  {"role": "assistant", "content": [b.model_dump() for b in first.content]},
  {"role": "user", "content": [{"type": "text", "text": "on"}]},
]
found["second"] = client.messages.create(
  messages=messages, extra_body={"return_token_ids": True}, **ASKED
).model_dump()
messages = [
  {"role": "user", "content": "look"},
  {
    "role": "assistant",
    "content": [
      {"type": "tool_use", "id": "a", "name": "look", "input": {"at": "desk"}}
    ],
  },
  {
    "role": "user",
    "content": [
      {"type": "tool_result", "tool_use_id": "a", "content": "a lamp"},
      {"type": "text", "text": "and?"},
    ],
  },
]
found["tools"] = client.messages.create(
  messages=messages, tools=TOOLS, **ASKED
).model_dump()
found["count"] = client.messages.count_tokens(
  model="any", messages=messages, tools=TOOLS
).input_tokens


async def together():
  async with anthropic.AsyncAnthropic(
    base_url=url, api_key=key, max_retries=0
  ) as other:
    return await asyncio.gather(
      *(
        other.messages.create(
          messages=[{"role": "user", "content": f"{n}"}], **ASKED
        )
        for n in range(3)
      )
    )


found["together"] = len(asyncio.run(together()))
for name, more in (
  ("wrong", {"extra_body": {"temperature": -1.0}}),
  ("long", {"messages": [{"role": "user", "content": "a " * 5000}]}),
):
  try:
    client.messages.create(**({"messages": messages} | ASKED | more))
  except anthropic.APIStatusError as error:
    found[name] = [error.status_code, error.body]
try:
  anthropic.Anthropic(base_url=url, api_key="x", max_retries=0).messages.create(
    messages=messages, **ASKED
  )
except anthropic.AuthenticationError as error:
  found["key"] = error.body
print(json.dumps(found))
