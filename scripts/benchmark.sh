#!/usr/bin/env bash
# Seconds, arithmetic and memory of what is expensive, on whatever device there is.
#   bash scripts/benchmark.sh [--quick] [--profile] [--only CASE ...] [--out FILE]
#   bash scripts/benchmark.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
export KINETO_LOG_LEVEL=${KINETO_LOG_LEVEL:-99}  # or the profiler tells what it starts and stops
exec "$PYTHON" -m scripts.benchmarks "$@"
