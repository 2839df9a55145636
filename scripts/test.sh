#!/usr/bin/env bash
# Every test, on a fresh machine: first the environment, then pytest, in as many processes as there are cores, four at most.
#   bash scripts/test.sh [what pytest takes]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
cores=$(getconf _NPROCESSORS_ONLN)
# A file's tests share what is slow to make, so they stay together.
exec "$PYTHON" -m pytest --numprocesses "$(( cores < 4 ? cores : 4 ))" --dist loadfile "$@"
