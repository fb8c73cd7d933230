"""A taskset of verifiers: say a word; one reward at the end, and a tool."""

import verifiers.v1 as vf
import vf_words_tools

__all__ = ["WordsTaskset"]
WORDS = ("red", "green", "blue", "black")


class WordData(vf.TaskData):
  word: str


class WordTaskConfig(vf.TaskConfig):
  tools: vf.ToolsetConfig = vf.ToolsetConfig()
  with_tools: bool = False


class WordTask(vf.Task[WordData, vf.State, WordTaskConfig]):
  @classmethod
  def toolsets(cls, config):
    if not config.with_tools:
      return []
    return [vf_words_tools.WordTools(config.tools)]

  @vf.reward(weight=2.0)
  async def said(self, trace) -> float:
    if trace.last_reply == "raise":
      raise RuntimeError("as asked")
    return float(trace.last_reply == self.data.word)

  @vf.metric
  async def letters(self, trace) -> float:
    return len(trace.last_reply)


class WordsConfig(vf.TasksetConfig):
  count: int = 30
  task: WordTaskConfig = WordTaskConfig()


class WordsTaskset(vf.Taskset[WordTask, WordsConfig]):
  def load(self):
    for n in range(self.config.count):
      word = WORDS[n % 4]
      yield WordTask(
        WordData(
          prompt=f"Say {word}, number {n}.",
          system_prompt="Be short.",
          word=word,
        ),
        self.config.task,
      )
