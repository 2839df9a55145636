#!/usr/bin/env bash
# What times that features share cost the flow prior: the loss on held-out digits, step by step, over several seeds.
#   bash scripts/compare_group_sizes.sh
#   SEEDS="0 1 2" SIZES="1 16" STEPS=500 bash scripts/compare_group_sizes.sh
# One thread each, one after the other. Prints the table and draws runs/group_sizes/group_sizes.png (docs/ has a copy); run again, it goes on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
SEEDS=${SEEDS:-0 1 2}
SIZES=${SIZES:-1 16}
STEPS=${STEPS:-500}
RUNS=${RUNS:-runs/group_sizes}
ensure_environment
export PYTHON OMP_NUM_THREADS=1 PRESET=digits_semantic DATA= NPROC=1 NNODES=1
for seed in $SEEDS; do
  for size in $SIZES; do
    bash scripts/train_flowhead.sh held_out=0.1 "group_size=$size" "train.seed=$seed" "train.steps=$STEPS" train.eval_steps=50 \
      "run_dir=$RUNS/size${size}_seed$seed"
  done
done
exec "$PYTHON" scripts/draw_group_sizes.py "$RUNS" "$RUNS/group_sizes.png" --sizes $SIZES --seeds $SEEDS
