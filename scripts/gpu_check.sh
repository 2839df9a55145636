#!/usr/bin/env bash
# Check and measure everything that a GPU changes, in a few minutes, and keep what was found.
#   PYTHON=python3 bash scripts/gpu_check.sh [--minutes 6] [--only NAME ...] [--out DIR] [--done DIR]
#   bash scripts/gpu_check.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
export KINETO_LOG_LEVEL=${KINETO_LOG_LEVEL:-99}  # or the profiler tells what it starts and stops
exec "$PYTHON" -m scripts.gpu_check "$@"
