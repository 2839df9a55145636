#!/usr/bin/env bash
# Stage 3: cache latents -> measure their scale -> train MAR -> distil head and guidance, where the sampler asks for that -> sample -> evaluate.
#   bash scripts/train_mar.sh [option=value ...]
#   PRESET=folder DATA=/data/images NPROC=8 NNODES=1 bash scripts/train_mar.sh optim.lr=2e-4
# DATA is where images lie: a folder with one sub-folder per class, tar shards, a zip, Parquet files and others (docs/usage.md).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
after_training() { launch mar distil "$@"; }
train_generator mar "$@"
