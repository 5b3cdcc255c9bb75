#!/usr/bin/env bash
# Links a release program so that the functions it runs at start, at rest and for every request lie
# together. The kernel maps a program's file in pieces of 64 KiB, so ten scattered functions keep a
# mebibyte in memory beside every pod; together they share two pieces, and the cache lines.
#
# hack/layout.txt names the functions and their sizes, without the hashes that change with every
# compiler. Functions of one name are told apart by size; where none fits, all of them follow at the
# end. A name that is gone costs nothing. hack/layout.sh writes the list anew. Other linkers than lld
# link as ever.
# Its name matters: rustc infers from some names that the linker is none that a C compiler calls.
set -euo pipefail
: "${HOLDFAST_CC:=cc}"
case " $* " in *" -fuse-ld=lld "*) ;; *) exec "$HOLDFAST_CC" "$@" ;; esac

objects=()
for argument in "$@"; do
  case "$argument" in *.o | *.rlib) objects+=("$argument") ;; esac
done
order=$(mktemp)
trap 'rm -f "$order"' EXIT
# An archive may hold what is no object.
{ nm --defined-only --format=posix "${objects[@]}" 2>/dev/null || true; } | awk '
  NR == FNR { place[$1, $2] = NR; if (!($1 in first)) first[$1] = NR; next }
  $2 ~ /^[tTwW]$/ {
    name = $1
    if (match(name, /17h[0-9a-f]+E$/)) name = substr(name, 1, RSTART - 1)
    sub(/^0+/, "", $4)
    if ((name, $4) in place) print place[name, $4], $1
    else if (name in first) print 1000000 + first[name], $1
  }' "$(dirname "$0")/layout.txt" - | sort -n | cut -d" " -f2 >"$order"
"$HOLDFAST_CC" "$@" -Wl,-z,pack-relative-relocs \
  "-Wl,--symbol-ordering-file=$order" -Wl,--no-warn-symbol-ordering
