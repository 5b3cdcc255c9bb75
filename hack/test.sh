#!/usr/bin/env bash
# Runs everything, or a part: test.sh [lint|fast|all]. The last line is a count; exit code 1 when
# anything failed. A step that cannot run is a failure, never a skip.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
export HOLDFAST_CACHE CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}"
part=${1:-all}
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# A step that is one check.
check() {
  local what=$1; shift
  echo "== $what"
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $what" >&2; fi
}

# A step that is a test run: its own counts are added.
suite() {
  local what=$1; shift
  echo "== $what"
  "$@" 2>&1 | tee "$log"
  local code=${PIPESTATUS[0]} ok bad
  read -r ok bad < <(awk '/^test result:/ { ok += $4; bad += $6 } END { print ok + 0, bad + 0 }' "$log")
  passed=$((passed + ok)) failed=$((failed + bad))
  # A suite that does not build, or breaks off, has failed even if no test said so.
  if [ "$code" -ne 0 ] && [ "$bad" -eq 0 ]; then
    failed=$((failed + 1)); echo "FAILED: $what" >&2
  fi
}

finish() {
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
  exit
}

if [ "$part" = lint ]; then check "packages" hack/packages.sh build; else check "packages" hack/packages.sh test; fi
[ "$failed" -eq 0 ] || finish

tools() {
  local wanted=(cargo-deny)
  [ "$part" = lint ] || wanted+=(cluster-box helm valkey envoy dapr-python dapr-js)
  local tool
  for tool in "${wanted[@]}"; do hack/tools.sh "$tool" || return; done
}
check "tools" tools
[ "$failed" -eq 0 ] || finish

check "format" cargo fmt --all --check
check "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
check "rules between crates" hack/deny.sh
[ "$part" = lint ] && finish

# What the cluster needs is compiled while the suites wait, and gives way to them.
meanwhile=(nice hack/e2e.sh build)
[ "$part" = fast ] && meanwhile=()
suite "unit, conformance, property" hack/suites.sh "${meanwhile[@]}"
# That has built the operator: cargo would build it again, with the features of this one package.
HOLDFAST_OPERATOR="$CARGO_TARGET_DIR/debug/holdfast-operator" check "generated files" hack/gen.sh --check
[ "$part" = fast ] && finish

suite "chart and cluster" hack/e2e.sh
finish
