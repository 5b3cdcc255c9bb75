#!/usr/bin/env bash
# Builds for release, measures, prints the table and writes it to docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}"
hack/packages.sh test
hack/release.sh build --release --locked -p holdfast-cli -p holdfast-sidecar -p holdfast-operator -p holdfast-bench
"$CARGO_TARGET_DIR/release/holdfast-bench" --bin "$CARGO_TARGET_DIR/release" --write docs/performance.md "$@"
