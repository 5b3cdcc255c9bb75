#!/usr/bin/env bash
# A real Kubernetes on this machine, for the tests: one node, no Docker, no registry, no Internet.
#
#   cluster.sh up      starts it (after removing what an earlier run left); prints how to use it
#   cluster.sh down    stops it and leaves nothing behind
#   cluster.sh image NAME ROOT [ENTRYPOINT…]   makes an image of a directory and loads it
#   cluster.sh exec CMD…                       runs a command inside, with KUBECONFIG set
#   cluster.sh status  shows nodes and pods
#
# Everything lives in HOLDFAST_CLUSTER_DIR (default /tmp/holdfast-cluster) and in one network
# namespace; the machine's own network, containers and cgroups are not touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${HOLDFAST_CLUSTER_DIR:-/tmp/holdfast-cluster}
netns="hf-$(echo "$dir" | sha256sum | cut -c1-8)"
node_ip=10.250.0.1
export KUBECONFIG="$dir/kubeconfig"

inside() { nsenter --net="/var/run/netns/$netns" "$@"; }

fail() {
  echo "cluster: $1" >&2
  [ -n "${2:-}" ] && tail -n 25 "$dir/$2.log" >&2
  exit 1
}

# start NAME CMD…: runs inside, logs to NAME.log, remembers the pid.
start() {
  local name=$1; shift
  (cd "$dir" && exec setsid nsenter --net="/var/run/netns/$netns" "$@" </dev/null >"$name.log" 2>&1) &
  echo $! >"$dir/$name.pid"
}

# wait_for SECONDS LOG WHAT CMD…
wait_for() {
  local seconds=$1 log=$2 what=$3; shift 3
  local until=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || fail "waited $seconds s in vain for $what" "$log"
    kill -0 "$(cat "$dir/$log.pid")" 2>/dev/null || fail "$log has ended" "$log"
    sleep 0.2
  done
}

kubectl() { inside "$box" kubectl "$@"; }

down() {
  local pid name
  if [ -d "$dir" ]; then
    # The kubelet first: it would start again what ends.
    for name in kubelet proxy scheduler controller-manager; do stop "$name" TERM; done
    # Every container of ours has a shim that names our socket.
    for pid in $(pgrep -f -- "-address $dir/containerd.sock" || true); do
      pkill -KILL -P "$pid" 2>/dev/null || true
      kill -KILL "$pid" 2>/dev/null || true
    done
    for name in containerd apiserver etcd; do stop "$name" KILL; done
    remains
    awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r |
      while read -r mount; do umount -l "$(printf '%b' "$mount")" 2>/dev/null || true; done
  fi
  ip netns delete "$netns" 2>/dev/null || true
  rm -rf "$dir"
}

# What killed containers leave outside of our directory.
remains() {
  local task id ids=()
  for task in "$dir"/containerd-state/io.containerd.runtime.v2.task/k8s.io/*/; do
    [ -d "$task" ] || continue
    id=$(basename "$task")
    ids+=("$id")
    grep -aoh '/run/containerd/s/[0-9a-f]*' "$task"/{address,bootstrap.json} 2>/dev/null |
      xargs -r rm -f || true # one of the two files is there
    rm -rf "/run/containerd/runc/k8s.io/$id" "/var/lib/cni/results/"*"-$id-"*
  done
  [ ${#ids[@]} -eq 0 ] ||
    find /sys/fs/cgroup -depth -type d -path '*/k8s.io/*' 2>/dev/null |
      grep -F "$(printf '/k8s.io/%s\n' "${ids[@]}")" | xargs -r rmdir 2>/dev/null || true
  rmdir /sys/fs/cgroup/{,*/}k8s.io 2>/dev/null || true
}

stop() {
  local file="$dir/$1.pid" pid
  [ -f "$file" ] || return 0
  pid=$(cat "$file")
  # Only what we started: the pid may be another's by now.
  if grep -qaF -e "$dir" "/proc/$pid/cmdline" 2>/dev/null; then
    kill "-$2" "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$file"
}

network() {
  ip netns add "$netns"
  inside ip link set lo up
  inside ip link add node0 type veth peer name node0p
  inside ip addr add "$node_ip/24" dev node0
  inside ip link set node0 up
  inside ip link set node0p up
  inside ip route add default via "$node_ip" dev node0
  inside sysctl -qw net.ipv4.ip_forward=1
}

configure() {
  openssl genrsa -out "$dir/sa.key" 2048 2>/dev/null
  openssl rsa -in "$dir/sa.key" -pubout -out "$dir/sa.pub" 2>/dev/null
  local token
  token=$(openssl rand -hex 16)
  (umask 077 && echo "$token,admin,admin,system:masters" >"$dir/tokens.csv")
  (umask 077 && cat >"$KUBECONFIG") <<Y
apiVersion: v1
kind: Config
clusters: [{name: holdfast, cluster: {server: "https://$node_ip:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: holdfast, context: {cluster: holdfast, user: admin}}]
current-context: holdfast
Y
  cat >"$dir/containerd.toml" <<Y
version = 2
root = "$dir/containerd-root"
state = "$dir/containerd-state"
[grpc]
  address = "$dir/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local/pause:1"
  disable_tcp_service = true
  # Without it runc ends with "can't get final child's PID from pipe" on some kernels.
  restrict_oom_score_adj = true
  # Not in /run/netns, where they would outlive a run that was killed.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
Y
  mkdir -p "$dir/cni"
  cat >"$dir/cni/10-bridge.conflist" <<Y
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/addresses",
            "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}},
  {"type": "loopback"}]}
Y
  cat >"$dir/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
# Only this network namespace reaches it, and the API server comes without a certificate.
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 0.0.0.0
containerRuntimeEndpoint: unix://$dir/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
cgroupsPerQOS: false
localStorageCapacityIsolation: false
podLogsDir: $dir/pod-logs
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%"}
Y
}

# The container that holds a pod's namespaces.
pause_image() {
  cat >"$dir/pause.c" <<'C'
#include <signal.h>
#include <unistd.h>
static void end(int signal) { _exit(signal == 0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }
C
  mkdir -p "$dir/pause"
  gcc -static -O2 -o "$dir/pause/pause" "$dir/pause.c"
  image local/pause:1 "$dir/pause" /pause
}

image() {
  local name=$1 root=$2; shift 2
  local tar="$dir/image.tar"
  python3 "$here/image.py" "docker.io/$name" "$root" "$tar" "$@"
  ctr -a "$dir/containerd.sock" -n k8s.io images import "$tar" >/dev/null
  rm -f "$tar"
}

up() {
  [ "$(id -u)" -eq 0 ] || fail "must be run as root: it makes network namespaces and containers"
  for tool in containerd ctr runc nft openssl nsenter gcc python3; do
    command -v "$tool" >/dev/null || fail "$tool is missing: run hack/packages.sh test"
  done
  down
  mkdir -p "$dir"
  network
  configure
  start etcd "$box" etcd --data-dir "$dir/etcd" --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
    --unsafe-no-fsync
  start apiserver "$box" apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 \
    --advertise-address=$node_ip --secure-port=6443 --cert-dir="$dir/certs" \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$dir/sa.pub" --service-account-signing-key-file="$dir/sa.key" \
    --token-auth-file="$dir/tokens.csv" --authorization-mode=Node,RBAC \
    --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
    --kubelet-preferred-address-types=InternalIP
  start containerd containerd -c "$dir/containerd.toml"
  wait_for 90 apiserver "the API server" kubectl get --raw /readyz
  wait_for 30 containerd "containerd" ctr -a "$dir/containerd.sock" version
  pause_image
  start controller-manager "$box" controller-manager --kubeconfig="$KUBECONFIG" \
    --service-account-private-key-file="$dir/sa.key" --root-ca-file="$dir/certs/apiserver.crt" \
    --use-service-account-credentials=true --leader-elect=false --bind-address=127.0.0.1 \
    --cluster-cidr=10.244.0.0/16 --allocate-node-cidrs=true
  start scheduler "$box" scheduler --kubeconfig="$KUBECONFIG" --leader-elect=false \
    --bind-address=127.0.0.1
  start kubelet "$box" kubelet --config="$dir/kubelet.yaml" --kubeconfig="$KUBECONFIG" \
    --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet-certs" --hostname-override=node1 \
    --node-ip=$node_ip
  start proxy "$box" proxy --kubeconfig="$KUBECONFIG" --proxy-mode=nftables \
    --hostname-override=node1 --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 \
    --conntrack-min=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
  wait_for 90 kubelet "the node" kubectl wait --for=condition=Ready node/node1 --timeout=1s
  wait_for 60 controller-manager "the default ServiceAccount" \
    kubectl get serviceaccount default -n default
  echo "Kubernetes is up. Use it with: $0 exec kubectl get pods -A"
}

box=$("$here/../../hack/tools.sh" cluster-box)
case "${1:-}" in
  up) up ;;
  down) down ;;
  image) shift; image "$@" ;;
  exec)
    shift
    [ -d "$dir" ] || fail "it is not up"
    mkdir -p "$dir/bin"
    ln -sf "$box" "$dir/bin/cluster-box"
    printf '#!/bin/sh\nexec "%s" kubectl "$@"\n' "$box" >"$dir/bin/kubectl"
    chmod +x "$dir/bin/kubectl"
    PATH="$dir/bin:$PATH" inside "$@"
    ;;
  status) kubectl get nodes,pods -A -o wide ;;
  *) sed -n '2,10p' "$0"; exit 2 ;;
esac
