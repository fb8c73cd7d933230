#!/usr/bin/env bash
# Make a GKE cluster with slices, Kueue and JobSet, through xpk.
#
#   PROJECT=my-project ZONE=us-west4-a CLUSTER=steppo TYPE=v5litepod-16 \
#     [SLICES=1] [SPOT=1] tpu/xpk/cluster.sh [--dry-run]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/vm/common.sh
source "$here/../vm/common.sh"
need PROJECT ZONE CLUSTER TYPE
capacity=--on-demand
[[ "${SPOT:-0}" == 1 ]] && capacity=--spot
xpk cluster create "--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER" \
  "--tpu-type=$TYPE" "--num-slices=${SLICES:-1}" "$capacity" "$@"
