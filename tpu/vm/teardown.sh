#!/usr/bin/env bash
# Give a slice back: the node and its queued resource.
#
#   NAME=steppo PROJECT=my-project ZONE=us-west4-a tpu/vm/teardown.sh
#
# What is on the workers' disks is lost; DRY_RUN=1 prints the command.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/vm/common.sh
source "$here/common.sh"
need NAME PROJECT ZONE

run gcloud compute tpus queued-resources delete "$NAME" \
  "--project=$PROJECT" "--zone=$ZONE" --force --quiet
