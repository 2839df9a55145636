#!/usr/bin/env bash
# The reliability scorecard: kills, crashes, corruption, full disks and second writers, on real processes; prints row, tried, held.
#   bash scripts/soak.sh [--quick] [--rows 1,3,4] [--stages sit,distil] [--seed 0] [--json tests/soak/results.json]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment requirements-test.txt
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/tests:$PWD/tests/helpers:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m soak "$@"
