"""The program that verifiers runs for an agent here: a chat, in this process.

verifiers calls what plays an agent a harness. Its own are programs, which it
starts anew for every episode with an interpreter that it sets up by `uv`. This
one is a loop of the process that the environment lives in: it asks, has tools
called as long as the answers call some, and ends with the first answer that
calls none.

verifiers finds a harness by the name of a module and by what its `__all__`
names. This module imports verifiers, and is imported by `env` alone.

Source: the package verifiers 0.4.0 (`verifiers.v1`).
"""

import contextlib
import functools
import json
import ssl

import httpx
from verifiers.v1 import harness as harness_lib
from verifiers.v1 import runtimes
from verifiers.v1.configs import harness as configs
from verifiers.v1.dialects import chat
from verifiers.v1.harnesses.utils import mcp

__all__ = ["ChatHarness"]


class ChatHarness(harness_lib.Harness[configs.HarnessConfig]):
  """Asks in this process what verifiers' `null` asks in one of its own."""

  APPENDS_SYSTEM_PROMPT = True
  SUPPORTS_MCP = True
  SUPPORTS_RESUME = True
  EXECUTES_CODE = False
  NEEDS_CONTAINER = False

  async def launch(
    self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, **_
  ):
    """Plays one segment of an episode; see verifiers' `Harness.launch`."""
    system, prompt = self.resolve_prompt(data)
    messages = [{"role": "system", "content": system}] if system else []
    if isinstance(prompt, str):
      messages.append({"role": "user", "content": prompt})
    else:
      messages += [chat.message_to_wire(one) for one in prompt or ()]
    servers = {
      name: {"url": url, "timeout": self.config.tool_timeout}
      for name, url in mcp_urls.items()
    }
    async with contextlib.AsyncExitStack() as stack:
      client = await stack.enter_async_context(
        httpx.AsyncClient(timeout=None, verify=_certificates())
      )
      tools, places, live = await mcp.connect_mcp(
        {"mcpServers": servers}, stack
      )
      while True:
        body = {"model": ctx.model, "messages": messages}
        answer = await client.post(
          f"{endpoint}/chat/completions",
          json=body | ({"tools": tools} if tools else {}),
          headers={"Authorization": f"Bearer {secret}"},
        )
        if answer.status_code != 200:
          # A limit of the task, which verifiers knows of, or a fault.
          return runtimes.ProgramResult(1, "", answer.text)
        said = answer.json()["choices"][0]["message"]
        messages.append({k: v for k, v in said.items() if v is not None})
        if not said.get("tool_calls"):
          return runtimes.ProgramResult(0, "", "")
        for call in said["tool_calls"]:
          messages.append(await _called(live, places, call))


@functools.cache
def _certificates() -> ssl.SSLContext:
  """Whom clients trust. A turn has a client, and reading this takes 50 ms."""
  return httpx.create_ssl_context()


async def _called(live, places, call) -> dict:
  """The message with what a tool answers."""
  function = call["function"]
  name = function["name"]
  if name in places:
    content = await mcp.call_mcp(
      live, places, name, json.loads(function["arguments"])
    )
  else:
    content = f"There is no tool {name!r}."
  return {
    "role": "tool",
    "tool_call_id": call["id"],
    "name": name,
    "content": content,
  }
