#!/usr/bin/env bash
# Seconds, arithmetic and memory of what is expensive, on whatever device there is.
#   bash scripts/benchmark.sh [--quick] [--only CASE ...] [--out FILE]
#   bash scripts/benchmark.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
exec "$PYTHON" -m scripts.benchmarks "$@"
