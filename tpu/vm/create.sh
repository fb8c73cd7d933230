#!/usr/bin/env bash
# Ask for a slice by a queued resource, and wait until it is there.
#
#   NAME=steppo PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-16 \
#     RUNTIME=v2-alpha-tpuv5-lite [SPOT=1] [WAIT=1] tpu/vm/create.sh
#
# DRY_RUN=1 prints the commands. The names of types and runtimes are listed by
# `gcloud compute tpus accelerator-types list` and `... tpus versions list`.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/vm/common.sh
source "$here/common.sh"
need NAME PROJECT ZONE TYPE RUNTIME

where=("--project=$PROJECT" "--zone=$ZONE")
options=()
[[ "${SPOT:-0}" == 1 ]] && options+=(--spot)
run gcloud compute tpus queued-resources create "$NAME" "--node-id=$NAME" \
  "--accelerator-type=$TYPE" "--runtime-version=$RUNTIME" "${where[@]}" \
  "${options[@]}"

[[ "${DRY_RUN:-0}" == 1 || "${WAIT:-0}" != 1 ]] && exit 0
while true; do
  state="$(gcloud compute tpus queued-resources describe "$NAME" \
    "${where[@]}" '--format=value(state.state)')"
  echo "$(date -u +%FT%TZ) $NAME: $state"
  case "$state" in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED) exit 1 ;;
  esac
  sleep "${POLL:-30}"
done
