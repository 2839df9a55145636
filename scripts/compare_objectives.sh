#!/usr/bin/env bash
# The paper's objective against distribution alignment on the digits: the same schedule, and the best of the same weights, for both.
#   bash scripts/compare_objectives.sh
#   TARGETS="semantic lowlevel textual" WEIGHTS="0.003 0.01 0.03 0.1 0.3" SEEDS="0 1 2" JOBS=2 bash scripts/compare_objectives.sh
# For every target the weight of each objective is the one with the lowest FID on the seed SELECT, of generators with a short training (GRID_MAR_WORDS);
# it is then run on all SEEDS with the preset's own training, beside the regularisers in BESIDE. One table per target, in runs/objectives/<target>;
# run again, it goes on. FID is that of each run's best guidance scale (CFG=best), and with CFG=1 without guidance. Hours of computing: 10 short and 9 long runs a target. PRIOR_WORDS, AE_WORDS, MAR_WORDS and JOBS are compare_digits.sh's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TARGETS=${TARGETS:-semantic lowlevel textual}
WEIGHTS=${WEIGHTS:-0.003 0.01 0.03 0.1 0.3}
SEEDS=${SEEDS:-0 1 2}
SELECT=${SELECT:-0}
BESIDE=${BESIDE-none}
RUNS=${RUNS:-runs/objectives}
GRID_MAR_WORDS=${GRID_MAR_WORDS:-train.steps=800 train.eval_steps=0 sample.cfg=[1,1.5] model.mar.sampler.solver=ab2 model.mar.sampler.head_evaluations=10 model.mar.sampler.encoder_every=4 model.mar.sampler.skip_unread=true model.mar.sampler.share_first=true}
export CFG=${CFG:-best}
for target in $TARGETS; do
  export PRESET=digits_$target
  folder=$RUNS/$target best=$BESIDE
  mkdir -p "$folder/grid"
  for objective in likelihood distribution; do
    grid=$(printf " ${objective}_%s" $WEIGHTS)
    RUNS=$folder/grid SEEDS=$SELECT REGULARISERS=$grid MAR_WORDS=$GRID_MAR_WORDS bash scripts/compare_digits.sh | tee "$folder/$objective.txt"
    mv "$folder/grid/digits.json" "$folder/$objective.json"
    best+=" $(tail -n 1 "$folder/$objective.txt" | sed -n 's/^lowest FID: //p')"
  done
  echo "$target, seeds $SEEDS: $best"
  RUNS=$folder SEEDS=$SEEDS REGULARISERS=$best bash scripts/compare_digits.sh
done
