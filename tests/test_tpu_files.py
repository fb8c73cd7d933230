"""Scripts, manifests and settings of tpu/, checked without a cloud.

The tools are in the extra `tpu-lint` (`make tpu-lint`); a test whose tool is
missing is skipped.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import tpu_tools

TPU = tpu_tools.FOLDER
SCRIPTS = sorted([*TPU.glob("vm/*.sh"), *TPU.glob("xpk/*.sh")])
MANIFESTS = sorted(TPU.glob("gke/*.yaml"))
SETTINGS = sorted(TPU.glob("env/*.env"))
SCHEMAS = pathlib.Path(__file__).parent / "schemas"
SLICE = {
  "NAME": "steppo", "PROJECT": "my-project", "ZONE": "us-west4-a",
  "TYPE": "v5litepod-16", "RUNTIME": "v2-alpha-tpuv5-lite",
  "CLUSTER": "steppo", "IMAGE": "example.invalid/steppo:1",
}  # fmt: skip


def tool(name):
  beside = pathlib.Path(sys.executable).parent / name
  found = str(beside) if beside.exists() else shutil.which(name)
  if found is None:
    pytest.skip(f"{name} is not installed: make tpu-lint")
  return found


def call(*command, path="", **env):
  env = {k: str(v) for k, v in env.items()}
  search = f"{path}{os.pathsep}{os.environ['PATH']}" if path else None
  return subprocess.run(
    [str(x) for x in command],
    cwd=TPU.parent, text=True, capture_output=True, check=False, timeout=120,
    env=os.environ | env | ({"PATH": search} if search else {}),
  )  # fmt: skip


def flags(file):
  """The variables of an env file."""
  lines = file.read_text().splitlines()
  pairs = (line.split("=", 1) for line in lines if line[:1] not in ("#", ""))
  return dict(pairs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_pass_shellcheck(script):
  found = call(tool("shellcheck"), "-x", script)
  assert found.returncode == 0, found.stdout


def test_the_dockerfile_passes_hadolint_and_is_locked():
  file = TPU / "Dockerfile"
  text = file.read_text()
  for word in ("ENTRYPOINT", "CMD"):
    assert re.search(rf'^{word} \["', text, re.M), f"{word} in exec form"
  assert "--require-hashes" in text
  lock = (TPU / "requirements.lock").read_text().splitlines()
  lines = [line for line in lock if not line.startswith("#")]
  assert all(
    re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines
  )
  names = {line.split("==")[0].lower().replace("_", "-") for line in lines}
  wanted = re.search(
    r"^dependencies = \[(.*?)^\]", (TPU.parent / "pyproject.toml").read_text(),
    re.M | re.S,
  )[1]  # fmt: skip
  needed = {
    n.lower().replace("_", "-") for n in re.findall(r'"([\w-]+)>=', wanted)
  }
  assert needed | {"libtpu"} <= names
  found = call(tool("hadolint"), file)
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("file", SETTINGS, ids=lambda p: p.name)
def test_every_flag_has_a_reason_and_none_is_in_xla_flags(file):
  found = flags(file)
  assert set(found) == {"LIBTPU_INIT_ARGS", "JAX_PLATFORMS"}
  for flag in found["LIBTPU_INIT_ARGS"].split():
    name = flag.removeprefix("--").split("=")[0]
    assert re.search(rf"^# {name}: \w+", file.read_text(), re.M), name


def test_no_file_sets_xla_flags():
  for path in TPU.rglob("*"):
    if path.is_file() and "__pycache__" not in path.parts:
      text = path.read_text()
      assert not re.search(r"XLA_FLAGS\s*=|name: XLA_FLAGS", text), path


@pytest.mark.parametrize("file", SETTINGS, ids=lambda p: p.name)
def test_the_compiler_knows_every_flag(file):
  libtpu = pytest.importorskip("libtpu")
  library = pathlib.Path(libtpu.__file__).parent / "libtpu.so"
  data = library.read_bytes()
  for flag in flags(file)["LIBTPU_INIT_ARGS"].split():
    assert flag.removeprefix("--").split("=")[0].encode() + b"\0" in data


def documents(file):
  yaml = pytest.importorskip("yaml")
  return list(yaml.safe_load_all(file.read_text()))


def validate(document):
  """Against the schemas of Kubernetes, and ours of JobSet and Kueue."""
  jsonschema = pytest.importorskip("jsonschema")
  kubernetes = pytest.importorskip("kubernetes_validate")
  group = document["apiVersion"].split(".")[0]
  if group not in ("jobset", "kueue"):
    kubernetes.validate(document, "1.31", strict=True)
    return
  schema = json.loads((SCHEMAS / f"{group}.json").read_text())
  jsonschema.validate(document, schema)
  for job in document["spec"].get("replicatedJobs", []):
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    kubernetes.validate(made | job["template"], "1.31", strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda p: p.name)
def test_manifests_are_valid(file):
  assert documents(file)
  for document in documents(file):
    validate(document)


def test_a_misspelt_field_is_not_valid():
  (learner,) = documents(TPU / "gke/learner.yaml")
  spec = learner["spec"]["replicatedJobs"][0]["template"]["spec"]
  spec["template"]["spec"]["restartPolice"] = "Never"
  with pytest.raises(Exception, match="restartPolice"):
    validate(learner)
  (learner,) = documents(TPU / "gke/learner.yaml")
  learner["spec"]["failurePolicy"]["maxRestart"] = 1
  with pytest.raises(Exception, match="maxRestart"):
    validate(learner)
  queue = documents(TPU / "gke/kueue.yaml")[1]
  queue["spec"]["resourceGroups"][0]["flavors"][0]["quota"] = 1
  with pytest.raises(Exception, match="quota"):
    validate(queue)


def test_the_learners_manifest_restarts_what_saved_and_holds_the_flags():
  (learner,) = documents(TPU / "gke/learner.yaml")
  job = learner["spec"]["replicatedJobs"][0]["template"]["spec"]
  # Pods that fail restart the JobSet, but for a configuration error.
  assert learner["spec"]["failurePolicy"]["maxRestarts"] > 0
  rule = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
  assert (rule["operator"], rule["values"]) == ("In", [2])
  (container,) = job["template"]["spec"]["containers"]
  env = {pair["name"]: pair["value"] for pair in container["env"]}
  assert flags(TPU / "env/v5e.env").items() <= env.items()
  queues = {d["kind"]: d for d in documents(TPU / "gke/kueue.yaml")}
  label = learner["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
  assert queues["LocalQueue"]["metadata"]["name"] == label


def dry(script, *args, **env):
  found = call(TPU / script, *args, **SLICE, DRY_RUN=1, **env)
  assert found.returncode == 0, found.stderr
  return [shlex.split(line) for line in found.stdout.splitlines()]


def test_a_slice_is_asked_for_and_given_back():
  (asked,) = dry("vm/create.sh", SPOT=1)
  assert shlex.join(asked[:5]) == "gcloud compute tpus queued-resources create"
  assert {"--accelerator-type=v5litepod-16", "--spot"} <= set(asked)
  (given,) = dry("vm/teardown.sh")
  assert given[4:6] == ["delete", "steppo"]
  assert {"--force", "--quiet"} <= set(given)


def test_workers_run_the_command_with_the_flags():
  (line,) = dry(
    "vm/run_all_workers.sh", "python", "-c", "print('a b')",
    FLAGS=TPU / "env/v5e.env",
  )  # fmt: skip
  assert "--worker=all" in line
  text = line[-1].removeprefix("--command=")
  shown = text.replace("cd steppo_jax", "true").replace(
    "exec python", f"exec {shlex.quote(sys.executable)}"
  )
  assert call("bash", "-c", shown).stdout == "a b\n"
  shown = shown[: shown.index("exec ")] + 'echo "$LIBTPU_INIT_ARGS"'
  want = flags(TPU / "env/v5e.env")["LIBTPU_INIT_ARGS"]
  assert call("bash", "-c", shown).stdout.strip() == want


def test_what_is_missing_is_named_as_a_configuration_error():
  for script in ("create.sh", "teardown.sh", "run_all_workers.sh"):
    found = call(TPU / "vm" / script, NAME="steppo", PROJECT="", ZONE="z")
    assert found.returncode == 2
    assert "set PROJECT" in found.stderr


def command(tmp_path, *codes):
  """A command that ends with one status after the other, and counts."""
  file = tmp_path / "command.sh"
  file.write_text(
    f"#!/bin/bash\necho x >> {tmp_path}/runs\n"
    f"codes=({' '.join(map(str, codes))})\n"
    f'n=$(wc -l < {tmp_path}/runs)\nexit "${{codes[$((n - 1))]}}"\n'
  )
  file.chmod(0o755)
  return file


@pytest.mark.parametrize(
  ("codes", "status"),
  [
    ((42, 42, 0), 0),  # saved twice, then done
    ((2,), 2),  # a configuration error
    ((1, 1, 42, 1, 1, 0), 0),  # 42 begins a new row of tries
    ((1, 137, 255), 255),  # given up after two more tries
  ],
)
def test_babysit_starts_again_what_asks_for_it(tmp_path, codes, status):
  found = call(
    TPU / "vm/babysit.sh", command(tmp_path, *codes), RETRIES=2, PAUSE=0,
    NAME="",
  )  # fmt: skip
  assert found.returncode == status, found.stderr
  assert len((tmp_path / "runs").read_text().split()) == len(codes)


def test_babysit_asks_for_a_preempted_slice_again(tmp_path):
  cloud = tmp_path / "bin"
  cloud.mkdir()
  log = tmp_path / "asked"
  (cloud / "gcloud").write_text(
    f'#!/bin/bash\necho "$4" >> {log}\n'
    f'[[ "$4" == describe ]] || exit 0\n'
    f"grep -q create {log} && echo ACTIVE || echo SUSPENDED\n"
  )
  (cloud / "gcloud").chmod(0o755)
  found = call(
    TPU / "vm/babysit.sh", command(tmp_path, 42, 0), path=cloud, **SLICE
  )
  assert found.returncode == 0, found.stderr
  assert log.read_text().split() == [
    "describe", "delete", "create", "describe",  # gone, and there again
    "describe",  # before the second start
  ]  # fmt: skip


def shown(output, *, files):
  """The commands that xpk would run, and the files that it would apply.

  The files of a new cluster are xpk's own, and left out.
  """
  lines, inside = [], False
  for line in output.splitlines():
    if line.startswith("[XPK]"):
      inside = " content:" in line
      if inside and files:
        lines.append("--- file")
    elif not (inside and not files) and "container environment" not in line:
      lines.append(line.rstrip())
  return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
  ("golden", "script", "args", "env"),
  [
    ("learner", "learner.sh", ["--", "train", "a b"], {}),
    ("learner_two_slices", "learner.sh", ["--", "train"],
     {"SLICES": 2, "TYPE": "v6e-16"}),
    ("cluster", "cluster.sh", [], {"SPOT": 1}),
  ],
)  # fmt: skip
def test_the_dry_runs_of_xpk_are_the_goldens(
  golden, script, args, env, tmp_path
):
  xpk = os.environ.get("XPK_BIN") or str(pathlib.Path(tool("xpk")).parent)
  for other in ("gcloud", "kubectl"):
    tool(other)
  found = call(
    TPU / "xpk" / script, "--dry-run", *args, path=xpk,
    **SLICE | {"HOME": tmp_path} | env,
  )  # fmt: skip
  assert found.returncode == 0, found.stdout + found.stderr
  path = TPU / "xpk/golden" / f"{golden}.txt"
  seen = shown(found.stdout, files=golden != "cluster")
  if os.environ.get("WRITE_GOLDEN"):
    path.write_text(seen)
  assert seen == path.read_text()


def test_a_type_without_flags_is_refused():
  found = call(
    TPU / "xpk/learner.sh", "--dry-run", "--", "x", **SLICE | {"TYPE": "v4-8"}
  )
  assert found.returncode == 2
  assert "TYPE=v4-8 is none of" in found.stderr
