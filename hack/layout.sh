#!/usr/bin/env bash
# Writes hack/layout.txt anew: the functions that `holdfast dev` (in memory and on a Redis), and a sidecar
# beside a pod, run at start, at rest and for requests, in the order in which an emulator translates
# them. Run it when `make bench` shows that memory at rest has grown, or when what a request runs has
# changed. Takes some minutes; needs qemu-user and redis-server.
# HOLDFAST_BIN names a folder of release programs with their symbols, if there is one already.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
command -v qemu-x86_64 >/dev/null || { echo "layout.sh needs qemu-x86_64: install the Debian package qemu-user" >&2; exit 1; }

bin=${HOLDFAST_BIN:-}
if [ -z "$bin" ]; then
  export CARGO_TARGET_DIR="$HOLDFAST_CACHE/layout" CARGO_PROFILE_RELEASE_STRIP=none
  hack/release.sh build --release --locked -p holdfast-cli -p holdfast-sidecar -p holdfast-operator
  bin=$CARGO_TARGET_DIR/release
fi
work=$(mktemp -d)
export HOLDFAST_CLUSTER_DIR="$work/cluster"
pids=()
finish() {
  # The cluster's shell does not hand signals on to what it runs.
  for pid in "${pids[@]}"; do kill $(ps -o pid= --ppid "$pid") "$pid" 2>/dev/null || true; done
  e2e/cluster/cluster.sh down || true
  rm -rf "$work"
}
trap finish EXIT

# watch NAME CMD…: runs a program in the cluster's network, and writes down what it runs.
watch() {
  local name=$1; shift
  e2e/cluster/cluster.sh exec qemu-x86_64 -d in_asm,nochain -D "$work/$name.seen" "$@" \
    >"$work/$name.log" 2>&1 &
  pids+=($!)
}
# call PORT METHOD PATH: one request.
call() { e2e/cluster/cluster.sh exec curl -s -m 30 -X "$2" "http://127.0.0.1:$1/v1/$3" || true; }
# acquire PORT LOCK QUERY: the hold.
acquire() { call "$1" POST "locks/$2/acquire?key=default$3" | sed 's/.*"holdId":"\([^"]*\)".*/\1/'; }
# use PORT LOCK: what an app does all day.
use() {
  local held next
  for _ in 1 2 3; do
    held=$(acquire "$1" "$2" "")
    call "$1" GET "locks/$2" >/dev/null
    acquire "$1" "$2" "&waitSeconds=20" >"$work/next" & next=$!
    sleep 2
    call "$1" POST "locks/$2/release?holdId=$held" >/dev/null
    wait "$next"
    call "$1" POST "locks/$2/release?holdId=$(<"$work/next")" >/dev/null
  done
}

e2e/cluster/cluster.sh up
kubectl() { e2e/cluster/cluster.sh exec kubectl "$@"; }
kubectl apply -f crds/
kubectl wait --for=condition=Established crd --all
POD_NAME=operator POD_NAMESPACE=default HOLDFAST_SIDECAR_IMAGE=none \
  e2e/cluster/cluster.sh exec "$bin/holdfast-operator" run --webhook false --admin 127.0.0.1:5145 \
  >"$work/operator.log" 2>&1 &
pids+=($!)
kubectl apply -f examples/locks.yaml
kubectl wait --for=condition=Ready lock --all --timeout=60s

e2e/cluster/cluster.sh exec redis-server --port 5146 --save "" --appendonly no --dir "$work" \
  >"$work/redis.log" 2>&1 &
pids+=($!)
watch dev "$bin/holdfast" dev -f examples/ --listen 127.0.0.1:5140 --admin 127.0.0.1:5141
watch redis "$bin/holdfast" dev -f examples/ --redis redis://127.0.0.1:5146 \
  --listen 127.0.0.1:5144 --admin 127.0.0.1:5147
POD_NAMESPACE=default POD_NAME=layout \
  watch pod "$bin/holdfast-sidecar" --listen 127.0.0.1:5142 --admin 127.0.0.1:5143
sleep 20
for port in 5140 5144; do
  use $port nightly-report
  for _ in 1 2 3; do call $port POST "ratelimits/mail/check?key=a" >/dev/null; done
done
use 5142 nightly-report
sleep 20 # at rest
# sizes PROGRAM: its functions, and the size of each.
sizes() { nm --defined-only --format=posix "$bin/$1" | awk '{ sub(/^0+/, "", $4); print $1, $4 }'; }
# seen PROGRAM NAME: those that it ran, in the order in which they were seen.
seen() { sed -n 's/^IN: //p' "$work/$2.seen" | awk 'NR == FNR { size[$1] = $2; next }
  $1 ~ /^(_ZN|_R)/ && $1 in size { name = $1; sub(/17h[0-9a-f]+E$/, "", name); print name, size[$1] }' \
  <(sizes "$1") -; }
{ seen holdfast dev; seen holdfast-sidecar pod; seen holdfast redis; } | awk '!known[$0]++' >"$work/layout.txt"
lines=$(wc -l <"$work/layout.txt")
[ "$lines" -gt 1000 ] || { tail -n 20 "$work"/*.log >&2; echo "only $lines functions were seen" >&2; exit 1; }
mv "$work/layout.txt" "$root/hack/layout.txt"
echo "hack/layout.txt: $lines functions"
