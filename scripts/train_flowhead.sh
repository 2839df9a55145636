#!/usr/bin/env bash
# Stage 1: the flow prior on target features.
#   bash scripts/train_flowhead.sh [option=value ...]
#   PRESET=digits DATA=features.npy NPROC=8 NNODES=1 bash scripts/train_flowhead.sh optim.lr=2e-4
# DATA, where it is a file, is a table of target features of one's own.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if help_requested "$@"; then NPROC=1 NNODES=1; fi
arguments=(--preset "$PRESET")
if [[ -f $DATA ]]; then
  arguments+=(target.source=file "target.file.path=$DATA")
elif [[ -n $DATA && ! -d $DATA ]]; then
  fail "DATA=$DATA is not there"
fi
launch tokenizer.train_flowhead "${arguments[@]}" "$@"
