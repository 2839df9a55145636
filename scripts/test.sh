#!/usr/bin/env bash
# Every test, on a fresh machine: first the environment, then pytest. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
exec "$PYTHON" -m pytest "$@"
