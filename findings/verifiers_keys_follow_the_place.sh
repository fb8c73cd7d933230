#!/usr/bin/env bash
# verifiers 0.4.0: the key of a task, its "stable task identity", is another one as soon
# as a task is put before it.
#
# Iterating a taskset writes each task's place into its data (`idx`), and the default key
# is a digest of all data, the place too. Seen: of two tasksets with the same three
# questions, one of which has a fourth at its beginning, no key is in both; the same three
# in their own order have the same keys.
# Whoever selects, resumes or compares by `task.key` loses all tasks when a dataset grows
# at its front, is filtered before it is loaded or is loaded in another order. A taskset
# escapes by a `key` of its own.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet verifiers==0.4.0
cat > "$where/see.py" <<'PY'
import verifiers.v1 as vf


class Data(vf.TaskData):
  pass


class Question(vf.Task[Data]):
  pass


class Questions(vf.Taskset[Question]):
  questions = ("1 + 1?", "2 + 2?", "3 + 3?")

  def load(self):
    return [Question(Data(prompt=text)) for text in self.questions]


class More(Questions):
  questions = ("0 + 0?", *Questions.questions)


keys = lambda kind: {task.key for task in kind(vf.TasksetConfig())}
print("in both:", len(keys(Questions) & keys(More)), "of", len(keys(Questions)))
assert keys(Questions) == keys(Questions)
assert not keys(Questions) & keys(More)
PY
"$where/venv/bin/python" "$where/see.py"
echo "as described"
