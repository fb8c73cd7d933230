"""Two small Gymnasium environments, registered when this is imported."""

import gymnasium


class Count(gymnasium.Env):
  """Text in, text out: says a number and wants the next one."""

  observation_space = gymnasium.spaces.Text(100)
  action_space = gymnasium.spaces.Text(100)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.number = int(self.np_random.integers(1000))
    self.left = (options or {}).get("rounds", 3)
    return f"{self.number}", {}

  def step(self, action):
    right = action == str(self.number + 1)
    self.number += 1
    self.left -= right
    reward = 1.0 if self.left == 0 else 0.0
    return f"{self.number}", reward, self.left == 0, False, {}


class Switch(gymnasium.Env):
  """A discrete space that starts at 1; observations are mappings, or drawn."""

  metadata = {"render_modes": ["ansi"]}  # noqa: RUF012

  observation_space = gymnasium.spaces.Dict(text=gymnasium.spaces.Text(9))
  action_space = gymnasium.spaces.Discrete(2, start=1)

  def __init__(self, render_mode=None):
    self.render_mode = render_mode

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.lit = False
    return {"text": "dark"}, {}

  def step(self, action):
    self.lit = action == 2
    return {"text": "light" if self.lit else "dark"}, -1.0, self.lit, False, {}

  def render(self):
    return "[o]" if self.lit else "[ ]"


gymnasium.register("Count-v0", Count, disable_env_checker=True)
gymnasium.register(
  "Switch-v0", Switch, disable_env_checker=True, max_episode_steps=3
)
