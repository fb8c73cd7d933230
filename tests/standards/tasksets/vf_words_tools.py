"""The tools of the taskset beside it, which verifiers starts as a server."""

import verifiers.v1 as vf


class WordTools(vf.Toolset[vf.ToolsetConfig]):
  TOOL_PREFIX = "words"

  @vf.tool
  def join(self, first: str, second: str) -> str:
    """Puts two words together."""
    return f"{first}{second}"


if __name__ == "__main__":
  WordTools.run()
