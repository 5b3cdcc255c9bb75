#!/usr/bin/env bash
# cargo for the programs that are shipped: release.sh build --release …. Lays them out in memory by
# hack/layout.txt, see hack/linker.sh.
set -euo pipefail
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER="$(cd "$(dirname "$0")" && pwd)/linker.sh"
exec cargo "$@"
