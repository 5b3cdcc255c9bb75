#!/usr/bin/env bash
# The product as a black box, on a real Kubernetes: builds the programs and their image, starts a
# cluster (or uses the one of KUBECONFIG), installs the chart, and runs the tests of e2e/ on it.
# With KUBECONFIG set, HOLDFAST_IMAGE and HOLDFAST_APP_IMAGE name images that the cluster can pull.
# Usage: e2e.sh [ARGUMENT OF A TEST PROGRAM…], or e2e.sh build: only compiles all that is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
export HOLDFAST_CACHE CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}"
profile=${HOLDFAST_E2E_PROFILE:-e2e}

# Cargo's name for the profile whose folder is called debug.
programs() {
  cargo build --locked --profile "${profile/#debug/dev}" -p holdfast-operator -p holdfast-sidecar -p holdfast-cli
}

if [ "${1:-}" = build ]; then
  [ -n "${KUBECONFIG:-}" ] || programs
  exec cargo test --locked -p holdfast-e2e --no-run
fi

export HELM KUBECTL
HELM=$(hack/tools.sh helm)
box=$(hack/tools.sh cluster-box)

tests=$(cargo test --locked -p holdfast-e2e --no-run --message-format=json 2>/dev/null |
  python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message.get("profile", {}).get("test"):
        print(message["executable"])' | sort)
[ -n "$tests" ] || { cargo test --locked -p holdfast-e2e --no-run; exit 1; }

work=$(mktemp -d)
KUBECTL="$work/kubectl"
printf '#!/bin/sh\nexec "%s" kubectl "$@"\n' "$box" >"$KUBECTL"
chmod +x "$KUBECTL"

if [ -n "${KUBECONFIG:-}" ]; then
  : "${HOLDFAST_IMAGE:?names the image of the programs}" "${HOLDFAST_APP_IMAGE:?names an image with curl and redis}"
  export HOLDFAST_IMAGE HOLDFAST_APP_IMAGE
  trap 'rm -rf "$work"' EXIT
  run() { "$@"; }
else
  export HOLDFAST_CLUSTER_DIR="${HOLDFAST_CLUSTER_DIR:-/tmp/holdfast-e2e}"
  programs
  hack/images.sh "$work/images" "$profile"
  trap 'e2e/cluster/cluster.sh down; rm -rf "$work"' EXIT
  e2e/cluster/cluster.sh up
  export HOLDFAST_IMAGE=local/holdfast:e2e HOLDFAST_APP_IMAGE=local/app:e2e
  e2e/cluster/cluster.sh image "$HOLDFAST_IMAGE" "$work/images/holdfast"
  e2e/cluster/cluster.sh image "$HOLDFAST_APP_IMAGE" "$work/images/app"
  run() { "$root/e2e/cluster/cluster.sh" exec "$@"; }
fi

"$HELM" lint --strict charts/holdfast
"$HELM" lint --strict charts/holdfast --set mode=gateway
failed=0
for test in $tests; do
  # The scenes of `cluster` do not disturb one another; other tests take the operator away.
  case "${test##*/}" in cluster-*) threads=3 ;; *) threads=1 ;; esac
  run "$test" --test-threads=$threads "$@" || failed=1
done
exit $failed
