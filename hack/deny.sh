#!/usr/bin/env bash
# Checks deny.toml: who may depend on whom, licences, sources. Needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
deny=$(hack/tools.sh cargo-deny)
"$deny" --offline check --hide-inclusion-graph --allow unused-wrapper bans licenses sources
