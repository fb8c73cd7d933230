"""An environment of verifiers: climb; every step up is paid at once."""

import asyncio

import verifiers.v1 as vf

__all__ = ["StairsEnv", "StairsTaskset"]


class StairData(vf.TaskData):
  height: int


class StairTask(vf.Task[StairData]):
  pass


class StairsEnvConfig(vf.EnvConfig):
  climber: vf.AgentConfig = vf.AgentConfig()


class StairsEnv(vf.Env[StairsEnvConfig]):
  async def run(self, task, agents):
    at = 0
    async with agents.climber.interaction(task) as interaction:
      segment = await interaction.turn()
      while not segment.terminated:
        if segment.last_reply == "hang":
          await asyncio.sleep(3600)
        at += segment.last_reply == "up"
        interaction.trace.record_reward("stairs", at / task.data.height)
        if at == task.data.height:
          break
        segment = await interaction.turn(f"You are at {at}.")


class StairsTaskset(vf.Taskset[StairTask]):
  INFINITE = True

  def load(self):
    n = 0
    while True:
      prompt = f"Climb {2 + n % 2} stairs, number {n}."
      yield StairTask(StairData(prompt=prompt, height=2 + n % 2))
      n += 1
