#!/usr/bin/env bash
# Stage 3: cache latents -> measure their scale -> train SiT -> sample -> evaluate. Latents that MAR was trained on are taken as they are.
#   bash scripts/train_sit.sh [option=value ...]
#   PRESET=folder DATA=/data/images NPROC=8 NNODES=1 bash scripts/train_sit.sh optim.lr=2e-4
# DATA is a folder of images, with one sub-folder per class.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
train_generator sit "$@"
