#!/usr/bin/env bash
# Runs the test programs of the workspace, and the examples in its documentation, several at a time:
# mostly they wait, for a hold to expire or for a server to start. What one prints comes in one piece,
# when it has ended. Usage: suites.sh [COMMAND]: runs that beside them, and fails if it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
workspace=(--workspace --exclude holdfast-e2e --locked)
cores=$(nproc)
# Most tests of a program wait, too.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((cores * 2))}
# What insta was built with may be another checkout that shares the folder of builds.
export INSTA_WORKSPACE_ROOT=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export work

# run "FOLDER<tab>COMMAND": as cargo would, in the folder of the package.
run() {
  local folder=${1%%$'\t'*} command=${1#*$'\t'} log begun=$SECONDS code=0
  log=$(mktemp -p "$work")
  (cd "$folder" && eval "exec $command") >"$log" 2>&1 || code=$?
  (
    flock 9
    echo "-- $command: $((SECONDS - begun)) s"
    cat "$log"
    [ "$code" -eq 0 ] || grep -q '^test result: FAILED' "$log" ||
      echo "test result: FAILED. 0 passed; 1 failed: it broke off with exit code $code"
  ) 9>"$work/printing"
  [ "$code" -eq 0 ] # xargs takes some other codes for an order to stop
}
export -f run

# Those in tests/ take long, and the operator's longest: backwards by name, they come first.
cargo test "${workspace[@]}" --no-run --message-format=json-render-diagnostics | python3 -c '
import json, os, shlex, sys
tests = []
for message in map(json.loads, sys.stdin):
    if message.get("executable") and message["profile"]["test"]:
        folder = os.path.dirname(message["manifest_path"])
        tests.append(("test" in message["target"]["kind"], folder, message["executable"]))
for _, folder, program in sorted(tests, reverse=True):
    print(folder, shlex.quote(program), sep="\t")' >"$work/programs"
[ -s "$work/programs" ] # cargo has named some

{
  [ $# -eq 0 ] || printf '%s\t%s\n' "$PWD" "$*"
  cat "$work/programs"
  printf '%s\t%s\n' "$PWD" "cargo test --doc ${workspace[*]}"
} | xargs -d '\n' -n 1 -P "$((cores + 1))" bash -c 'run "$1"' run
