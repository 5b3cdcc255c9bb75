#!/usr/bin/env bash
# Lays out the images that the cluster tests run, as directories below OUT: images.sh OUT [PROFILE]
#   OUT/holdfast  the three programs and the libraries they name: nothing else
#   OUT/app       what a user's pod may have: a shell, curl, redis-server
set -euo pipefail
out=${1:?a directory}
profile=${2:-e2e}
: "${HOLDFAST_CACHE:=$HOME/.cache/holdfast}"
bin="${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}/$profile"

# put ROOT PROGRAM PATH: copies a program and the libraries it is linked with.
put() {
  local root=$1 program=$2 path=$3
  install -D -m 0755 "$program" "$root$path"
  # A static program names none.
  for library in $(ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true); do
    [ -e "$root$library" ] || install -D -m 0755 "$(readlink -f "$library")" "$root$library"
  done
}

rm -rf "$out"
for program in holdfast-operator holdfast-sidecar holdfast; do
  put "$out/holdfast" "$bin/$program" "/$program"
done

app="$out/app"
mkdir -p "$app"/{tmp,etc}
chmod 1777 "$app/tmp"
put "$app" "$(command -v busybox)" /bin/busybox
for name in sh sleep date cat echo test true kill wget grep sed cut tr tail head seq ls mkdir rm env timeout; do
  ln -sf busybox "$app/bin/$name"
done
put "$app" "$(command -v curl)" /usr/bin/curl
put "$app" "$(command -v redis-server)" /usr/bin/redis-server
put "$app" "$(command -v redis-cli)" /usr/bin/redis-cli
echo 'app:x:65532:65532::/tmp:/bin/sh' >"$app/etc/passwd"
