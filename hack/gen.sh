#!/usr/bin/env bash
# Writes the generated files. With --check: fails if they differ from what is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}"

out=crds
if [ "${1:-}" = --check ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
cargo run --quiet --locked -p holdfast-operator -- crd --out "$out"
if [ "$out" != crds ]; then
  diff -ru crds "$out" || { echo "crds/ is not what the code says: run 'make gen'" >&2; exit 1; }
fi
