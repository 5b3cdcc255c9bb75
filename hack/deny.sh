#!/usr/bin/env bash
# Checks deny.toml: who may depend on whom, licences, sources. The sources of all platforms are looked at,
# also of those that nothing is built for here: they are fetched first, unless they are there.
set -euo pipefail
cd "$(dirname "$0")/.."
deny=$(hack/tools.sh cargo-deny)
cargo fetch --locked --quiet
"$deny" --offline check --hide-inclusion-graph --allow unused-wrapper bans licenses sources
