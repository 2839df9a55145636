#!/usr/bin/env bash
# SimFlow: an autoencoder and a flow over its latents, trained together; then the evaluation of both, with no stage 3.
#   bash scripts/train_simflow.sh [option=value ...] [-- option=value ...]
#   PRESET=imagenet_simflow DATA=/data/images NPROC=8 NNODES=2 bash scripts/train_simflow.sh optim.lr=2e-4 -- sample.cfg=[1,2]
# Words behind -- are of sampling and its evaluation; those before it are of training, but for run_dir, which is everybody's.
# DATA is a folder of images, with one sub-folder per class.
PRESET=${PRESET:-digits_simflow}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
training=(--preset "$PRESET") sampling=(--preset "$PRESET") behind=false
if [[ -n $DATA ]]; then
  training+=(data.source=folder "data.path=$DATA")
  sampling+=(data.source=folder "data.path=$DATA")
fi
for word in "$@"; do
  if [[ $word == -- ]]; then behind=true; continue; fi
  if $behind || [[ $word == run_dir=* ]]; then sampling+=("$word"); fi
  $behind || training+=("$word")
done
if help_requested "$@" || [[ " $* " == *" --dry-run "* ]]; then
  NPROC=1 NNODES=1 launch simflow.train_simflow "${training[@]}"
  exit
fi
launch simflow.train_simflow "${training[@]}"
launch_once simflow.evaluate_ae "${training[@]}"
launch simflow generate "${sampling[@]}"
launch simflow evaluate "${sampling[@]}"
