#!/usr/bin/env bash
# Stage 2: the autoencoder, aligned to the flow prior of stage 1; then its evaluation.
#   bash scripts/train_ae.sh [option=value ...]
#   PRESET=folder DATA=/data/images NPROC=8 NNODES=1 bash scripts/train_ae.sh optim.lr=2e-4
#   bash scripts/train_ae.sh --dry-run      parameters, arithmetic and memory of a step; trains nothing
# DATA is where images lie: a folder with one sub-folder per class, tar shards, a zip, Parquet files and others (docs/usage.md).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if help_requested "$@" || [[ " $* " == *" --dry-run "* ]]; then NPROC=1 NNODES=1; fi
arguments=(--preset "$PRESET")
[[ -n $DATA ]] && arguments+=(data.source=files "data.path=$DATA")
launch tokenizer.train_ae "${arguments[@]}" "$@"
help_requested "$@" || launch_once tokenizer.evaluate "${arguments[@]}" "$@"
