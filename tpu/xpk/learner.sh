#!/usr/bin/env bash
# Run the learner as a JobSet on GKE, through xpk.
#
#   PROJECT=my-project ZONE=us-west4-a CLUSTER=steppo IMAGE=REGISTRY/steppo:1 \
#     TYPE=v5litepod-16 [SLICES=1] [WORKLOAD=steppo-learner] \
#     tpu/xpk/learner.sh [--dry-run] -- python -m steppo_jax train ...
#
# Status 42 (saved, to be started again) is one of those that JobSet restarts;
# 2 (a configuration error) is not. xpk's own 30 s would kill a run that saves.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/vm/common.sh
source "$here/../vm/common.sh"
need PROJECT ZONE CLUSTER IMAGE TYPE
options=()
while (($#)) && [[ "$1" != -- ]]; do
  options+=("$1")
  shift
done
shift || true
if (($# == 0)); then
  echo "give the command behind --" >&2
  exit 2
fi
case "$TYPE" in
  v5litepod-*) flags=v5e ;;
  v5p-*) flags=v5p ;;
  v6e-*) flags=v6e ;;
  tpu7x-*) flags=tpu7x ;;
  *)
    echo "TYPE=$TYPE is none of v5litepod-*, v5p-*, v6e-*, tpu7x-*" >&2
    exit 2
    ;;
esac

# xpk wants NAME=VALUE and no comments.
settings="$(mktemp)"
trap 'rm -f "$settings"' EXIT
grep -v '^#' "$here/../env/$flags.env" >"$settings"
xpk workload create --skip-validation \
  "--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER" \
  "--workload=${WORKLOAD:-steppo-learner}" "--tpu-type=$TYPE" \
  "--num-slices=${SLICES:-1}" "--docker-image=$IMAGE" \
  "--env-file=$settings" --restart-on-exit-codes=42 --max-restarts=100 \
  --termination-grace-period-seconds=120 --priority=medium \
  "--command=$(printf '%q ' "$@")" "${options[@]}"
