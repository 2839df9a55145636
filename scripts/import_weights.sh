#!/usr/bin/env bash
# Weights that were trained with published code, as a folder of this project.
#   bash scripts/import_weights.sh SOURCE --out FOLDER [option=value ...]
#   bash scripts/import_weights.sh softvq.safetensors --out runs/softvq/ae/autoencoder
# SOURCE is a checkpoint, a folder that holds one, or user/name of the hub.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
launch_once imports "$@"
