#!/usr/bin/env bash
# Every way of shaping latents side by side: rows of a table over seeds and lengths, each a run that goes on where it was, then the tables.
#   bash scripts/study.sh [--rows minimum] [--seeds 3] [--jobs N] [--data mnist] [--dry-run]
#   bash scripts/study.sh --help
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment requirements-study.txt
export PYTHON
exec "$PYTHON" -m study "$@"
