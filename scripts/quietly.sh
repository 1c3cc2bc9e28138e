# Sourced by scripts whose commands matter by their end only. They set `log`, a file, and `what`, for messages.

# Runs a command; if it fails, prints the end of its output and ends the script.
quietly() {
  mkdir -p "$(dirname "$log")"
  if ! "$@" >"$log" 2>&1; then
    tail -n 200 "$log" >&2
    echo "$what: failed: $*"
    exit 1
  fi
}
