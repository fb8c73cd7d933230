#!/usr/bin/env bash
# textarena 0.7.4: an invalid move of Countdown, Cryptarithm, Slitherlink or
# ThreeCardMonte ends the game with a text as its reward.
#
# `State.set_invalid_move(reason, reward)` takes the reason first; these games call it
# with the progress first and the reason behind it. Seen: after two moves that are no
# moves `close()` gives {0: "Bad action. Use `[k]`."}, and the number stands in the
# reason, "Invalid Move: 0.0"; GuessTheNumber gives 0.0.
# Whoever adds rewards up meets a TypeError at the end of such a game, or, where texts
# are turned into numbers without a look, nonsense.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet textarena==0.7.4
cat > "$where/see.py" <<'PY'
import textarena

rewards = {}
for game in (
  "GuessTheNumber-v0", "Countdown-v0", "Cryptarithm-v0", "Slitherlink-v0",
  "ThreeCardMonte-v0",
):
  env = textarena.make(f"{game}-raw")
  env.reset(num_players=1, seed=1)
  done, _ = env.step("nonsense")
  assert not done
  done, _ = env.step("nonsense")
  assert done
  rewards[game], info = env.close()
  print(game, rewards[game], info[0]["reason"])
kinds = {game: type(of[0]) for game, of in rewards.items()}
assert kinds.pop("GuessTheNumber-v0") is float
assert all(kind is str for kind in kinds.values())
PY
"$where/venv/bin/python" "$where/see.py"
echo "as described"
