# shellcheck shell=bash
# What the scripts of this folder share; sourced, not run.

# run COMMAND...: runs it, or prints it with DRY_RUN=1.
run() {
  if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# need NAME...: ends with status 2, a configuration error, if one is not set.
need() {
  local wanted
  for wanted in "$@"; do
    if [[ -z "${!wanted:-}" ]]; then
      echo "set $wanted; see the head of $0" >&2
      exit 2
    fi
  done
}

# exports FILE: the lines NAME=VALUE of an env file as a shell's exports.
exports() {
  local line
  while IFS= read -r line; do
    [[ -z "$line" || "$line" == \#* ]] && continue
    printf 'export %s=%q; ' "${line%%=*}" "${line#*=}"
  done <"$1"
}
