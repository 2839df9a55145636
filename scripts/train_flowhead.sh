#!/usr/bin/env bash
# Stage 1: the flow prior on target features.
#   bash scripts/train_flowhead.sh [option=value ...]
#   PRESET=folder DATA=features.npy NPROC=8 NNODES=1 bash scripts/train_flowhead.sh optim.lr=2e-4
#   PRESET=imagenet_dinov2 DATA=/data/imagenet/train NPROC=8 bash scripts/train_flowhead.sh
# DATA is a file with target features of one's own; or, for targets that are features of images, where these lie (docs/usage.md).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if help_requested "$@"; then NPROC=1 NNODES=1; fi
arguments=(--preset "$PRESET")
if [[ -d $DATA || $DATA == hf://* || $DATA == *[{*]* ]] || [[ -f $DATA && $DATA =~ \.(tar|tar\.[a-z0-9]+|tgz|zip|csv|tsv|jsonl|ndjson|parquet|arrow)$ ]]; then
  arguments+=(data.source=files "data.path=$DATA")
elif [[ -f $DATA ]]; then
  arguments+=(target.source=file "target.file.path=$DATA")
elif [[ -n $DATA ]]; then
  fail "DATA=$DATA is not there"
fi
launch tokenizer.prior.train_flowhead "${arguments[@]}" "$@"
