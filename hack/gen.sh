#!/usr/bin/env bash
# Writes the generated files: crds/, and the chart's copy of them. With --check: fails if they differ
# from what is committed. HOLDFAST_OPERATOR names an operator that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
operator=(cargo run --quiet --locked -p holdfast-operator --)
[ -z "${HOLDFAST_OPERATOR:-}" ] || operator=("$HOLDFAST_OPERATOR")
"${operator[@]}" crd --out "$out"
for copy in crds charts/holdfast/files/crds; do
  if [ "${1:-}" = --check ]; then
    diff -ru "$copy" "$out" || { echo "$copy is not what the code says: run 'make gen'" >&2; exit 1; }
  else
    mkdir -p "$copy"
    rm -f "$copy"/*.yaml
    cp "$out"/*.yaml "$copy"/
  fi
done
