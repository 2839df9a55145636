#!/usr/bin/env bash
# A page to play with a trained run, in a browser on this machine: draw classes, rebuild an image of yours, walk between two images.
#   bash scripts/demo.sh RUN [--port 7860]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment requirements-demo.txt
launch_once demo "$@"
