#!/usr/bin/env bash
# The paper's objective against distribution alignment on the digits: the same schedule, and the best of the same weights, for both.
#   bash scripts/compare_objectives.sh
#   TARGETS="semantic lowlevel textual" WEIGHTS="0.003 0.01 0.03 0.1 0.3" SEEDS="0 1 2" JOBS=2 bash scripts/compare_objectives.sh
# For every target the weight of each objective with the lowest FID on the seed SELECT, which is none of the others, is run on all seeds, beside no alignment. One table per
# target; run again, it goes on. By default 10 + 7 runs and 3 priors a target, hours of computing; AE_WORDS, MAR_WORDS and JOBS are compare_digits.sh's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TARGETS=${TARGETS:-semantic lowlevel textual}
WEIGHTS=${WEIGHTS:-0.003 0.01 0.03 0.1 0.3}
SEEDS=${SEEDS:-0 1 2}
SELECT=${SELECT:-100}
for target in $TARGETS; do
  export PRESET=digits_$target RUNS=runs/objectives/$target
  mkdir -p "$RUNS"
  best=none
  for objective in likelihood distribution; do
    grid=$(printf " ${objective}_%s" $WEIGHTS)
    SEEDS=$SELECT REGULARISERS=$grid bash scripts/compare_digits.sh | tee "$RUNS/$objective.txt"
    cp "$RUNS/digits.json" "$RUNS/$objective.json"
    best+=" $(tail -n 1 "$RUNS/$objective.txt" | sed -n 's/^lowest FID: //p')"
  done
  echo "$target, all seeds: $best"
  SEEDS=$SEEDS REGULARISERS=$best bash scripts/compare_digits.sh
done
