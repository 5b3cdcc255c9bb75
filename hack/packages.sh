#!/usr/bin/env bash
# Installs the Debian packages that are missing, by name. Usage: packages.sh build|test
# Nothing is started by it: services that come with a package stay stopped.
set -euo pipefail

build=(gcc libc6-dev make)
test=("${build[@]}" redis-server containerd runc containernetworking-plugins nftables iptables
  conntrack iproute2 util-linux openssl busybox-static curl python3
  python3-pip nodejs postgresql)
# Some builds of Node.js bring npm with them.
command -v npm >/dev/null || test+=(npm)

case "${1:-test}" in
  build) wanted=("${build[@]}") ;;
  test) wanted=("${test[@]}") ;;
  *) echo "usage: $0 build|test" >&2; exit 2 ;;
esac

missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  echo "missing packages: ${missing[*]}; install them, or run this as root on Debian" >&2
  exit 1
fi
echo "installing ${missing[*]}"
# Packages must not start daemons here: tests start their own on free ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "cannot install: ${missing[*]}" >&2
  exit 1
fi
rm -f "$log"
