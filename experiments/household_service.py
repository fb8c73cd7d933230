"""StepPO on household games that agents play by themselves, over HTTP.

    python -m steppo_jax train experiments/household_service.py &
    python experiments/agents/household.py

The run of household_steppo, whose episodes, evaluations too, are played by
another process; it needs the extra `gateway`. docs/agents.md tells more.
"""

import dataclasses

from household_steppo import CONFIG as _PLAYED_HERE

from steppo_jax.rollout.options import AgentConfig

CONFIG = dataclasses.replace(
  _PLAYED_HERE,
  rollout=dataclasses.replace(_PLAYED_HERE.rollout, source="service"),
  agents=AgentConfig(port=8137),
)
