#!/usr/bin/env bash
# Prints the path of a tool, after building it if it is not cached. Usage: tools.sh cluster-box|helm|cargo-deny
# Tools are cached outside the checkout, keyed by what they are built from.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"

tool=${1:-}
case "$tool" in
  cluster-box) key=$(cat "$root"/e2e/cluster/{*.go,go.mod,go.sum} | sha256sum) ;;
  helm) key=$(cat "$root"/e2e/helm/go.{mod,sum} | sha256sum) ;;
  cargo-deny) key=$(echo "cargo-deny 0.20.2" | sha256sum) ;;
  *) echo "usage: $0 cluster-box|helm|cargo-deny" >&2; exit 2 ;;
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
