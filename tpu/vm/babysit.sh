#!/usr/bin/env bash
# Start a command again as long as it asks for it, and a slice that was taken.
#
#   tpu/vm/babysit.sh COMMAND...                        on this machine
#   NAME=... PROJECT=... ZONE=... TYPE=... RUNTIME=... \
#     tpu/vm/babysit.sh tpu/vm/run_all_workers.sh ...   on a slice
#
# Status 42 says that the run saved and can go on: it is started again at once.
# 0 and 2 (done, a configuration error) end it. Everything else is tried again
# up to RETRIES (3) times in a row, PAUSE (30) seconds apart; a run that asked to
# be started again begins a new row. With NAME the slice is looked at before each
# start, and asked for again if it was preempted.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/vm/common.sh
source "$here/common.sh"
if (($# == 0)); then
  echo "give the command to look after" >&2
  exit 2
fi
retries="${RETRIES:-3}"

say() { echo "babysit: $(date -u +%FT%TZ) $*" >&2; }

state() {
  gcloud compute tpus queued-resources describe "$NAME" \
    "--project=$PROJECT" "--zone=$ZONE" '--format=value(state.state)' ||
    echo MISSING
}

# The slice, asked for again if it is gone.
slice() {
  local found
  [[ -z "${NAME:-}" ]] && return 0
  need PROJECT ZONE TYPE RUNTIME
  found="$(state)"
  [[ "$found" == ACTIVE ]] && return 0
  say "slice $NAME is $found: asked for again"
  if [[ "$found" != MISSING ]]; then
    gcloud compute tpus queued-resources delete "$NAME" \
      "--project=$PROJECT" "--zone=$ZONE" --force --quiet || true
  fi
  WAIT=1 "$here/create.sh"
  if [[ -n "${SETUP:-}" ]]; then
    "$here/run_all_workers.sh" bash -c "$SETUP"
  fi
}

failed=0
while true; do
  code=0
  slice || code=$?
  if ((code == 0)); then
    "$@" || code=$?
  fi
  case "$code" in
    0)
      say "done"
      exit 0
      ;;
    2)
      say "a configuration error: not started again"
      exit 2
      ;;
    42)
      failed=0
      say "saved and ended with 42: started again"
      ;;
    *)
      failed=$((failed + 1))
      if ((failed > retries)); then
        say "ended with $code, $failed times in a row: given up"
        exit "$code"
      fi
      say "ended with $code: try $failed of $retries in ${PAUSE:-30} s"
      sleep "${PAUSE:-30}"
      ;;
  esac
done
