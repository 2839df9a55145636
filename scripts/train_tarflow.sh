#!/usr/bin/env bash
# Stage 3 with an autoregressive flow: cache latents -> measure their scale -> train the flow -> sample -> evaluate.
#   bash scripts/train_tarflow.sh [option=value ...]
#   PRESET=imagenet DATA=/data/images NPROC=8 NNODES=1 bash scripts/train_tarflow.sh optim.lr=2e-4
# DATA is where images lie: a folder with one sub-folder per class, tar shards, a zip, Parquet files and others (docs/usage.md).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
train_generator simflow "$@"
