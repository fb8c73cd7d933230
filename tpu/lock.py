"""Write tpu/requirements.lock: every package of the image, by version and hash.

    python tpu/lock.py > tpu/requirements.lock

Asks pip what it would install for this package with `jax[tpu]` on this platform
(the image's: Linux, x86-64, Python 3.11), without installing it.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
WANTED = (str(ROOT), "jax[tpu]==0.10.2")
HEAD = """\
# Every package of the image with its hash, for Linux, x86-64, Python 3.11.
# Made by `python tpu/lock.py`; not edited by hand."""


def lines(report: dict) -> list[str]:
  """Requirements of pip's report, but for the package itself."""
  found = []
  for item in report["install"]:
    data = item["metadata"]
    if data["name"].replace("-", "_") == "steppo_jax":
      continue
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    found.append(f"{data['name']}=={data['version']} --hash=sha256:{digest}")
  return sorted(found, key=str.lower)


def main() -> int:
  command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"]
  command += ["--ignore-installed", "--report", "-", *WANTED]
  report = subprocess.run(command, check=True, stdout=subprocess.PIPE)
  print("\n".join([HEAD, *lines(json.loads(report.stdout))]))
  return 0


if __name__ == "__main__":
  sys.exit(main())
