#!/usr/bin/env bash
# Run one command on all workers of a slice, in the folder of the checkout.
#
#   NAME=steppo PROJECT=my-project ZONE=us-west4-a \
#     [FLAGS=tpu/env/v5e.env] [FOLDER=steppo_jax] \
#     tpu/vm/run_all_workers.sh .venv/bin/python -m steppo_jax train ...
#
# Ends with the command's status: 0 done, 42 saved and to be started again, 2 a
# configuration error. DRY_RUN=1 prints the command.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/vm/common.sh
source "$here/common.sh"
need NAME PROJECT ZONE
if (($# == 0)); then
  echo "give the command that the workers run" >&2
  exit 2
fi

text="cd $(printf '%q' "${FOLDER:-steppo_jax}") && "
[[ -n "${FLAGS:-}" ]] && text+="$(exports "$FLAGS")"
# exec: signals reach the program, which saves and ends with 42.
text+="exec $(printf '%q ' "$@")"
run gcloud compute tpus tpu-vm ssh "$NAME" "--project=$PROJECT" \
  "--zone=$ZONE" --worker=all "--command=$text"
