#!/usr/bin/env bash
# etils 1.15.0: while one thread imports tensorflow_datasets 4.9.10, relative imports
# fail in every other thread.
#
# `etils.epy.lazy_imports()`, in which tensorflow_datasets makes its own imports,
# replaces `builtins.__import__` for the whole process, and what it puts there refuses
# relative imports. Seen: a function that does `from .b import x` in another thread
# raises "ValueError: Relative import statements not supported (b)."
# Whoever imports tensorflow_datasets late, while another thread draws a progress bar
# (rich 15 imports `.markup` when it first draws a text), loses that thread.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet etils[epy]==1.15.0
mkdir "$where/package"
touch "$where/package/__init__.py"
echo "x = 1" > "$where/package/b.py"
printf 'def late():\n  from .b import x\n  return x\n' > "$where/package/a.py"
cat > "$where/see.py" <<'PY'
import importlib.metadata
import threading

from etils import epy
from package import a

seen = []


def other():
  try:
    seen.append(a.late())
  except ValueError as error:
    seen.append(str(error))


for block in (epy.lazy_imports, threading.Lock):
  with block():
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
print("etils", importlib.metadata.version("etils"), seen)
assert seen == ["Relative import statements not supported (b).", 1], seen
PY
"$where/venv/bin/python" "$where/see.py"
echo "as described"
