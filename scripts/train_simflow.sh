#!/usr/bin/env bash
# SimFlow: an autoencoder and a flow over its latents, trained together; then the evaluation of both, with no stage 3.
#   bash scripts/train_simflow.sh [option=value ...] [-- option=value ...]
#   PRESET=imagenet_simflow DATA=/data/images NPROC=8 NNODES=2 bash scripts/train_simflow.sh optim.lr=2e-4 -- sample.cfg=[1,2]
# Words behind -- are of sampling and its evaluation; those before it are of training, but for run_dir and the images (data.*), which are everybody's.
# DATA is where images lie: a folder with one sub-folder per class, tar shards, a zip, Parquet files and others (docs/usage.md).
PRESET=${PRESET:-digits_simflow}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
training=(--preset "$PRESET") sampling=(--preset "$PRESET") behind=false
if [[ -n $DATA ]]; then
  training+=(data.source=files "data.path=$DATA")
  sampling+=(data.source=files "data.path=$DATA")
fi
for word in "$@"; do
  if [[ $word == -- ]]; then behind=true; continue; fi
  case $word in
    data.crop=* | data.flip=* | data.min_area=*) shared=false ;;  # of training images alone
    run_dir=* | data.*) shared=true ;;
    *) shared=false ;;
  esac
  if $behind || $shared; then sampling+=("$word"); fi
  $behind || training+=("$word")
done
if help_requested "$@" || [[ " $* " == *" --dry-run "* ]]; then
  NPROC=1 NNODES=1 launch simflow.train_simflow "${training[@]}"
  exit
fi
if $behind; then NPROC=1 NNODES=1 launch simflow check_options "${sampling[@]}"; fi  # before training, rather than behind it
launch simflow.train_simflow "${training[@]}"
launch_once simflow.evaluate_ae "${training[@]}"
launch simflow generate "${sampling[@]}"
launch simflow evaluate "${sampling[@]}"
