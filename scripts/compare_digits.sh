#!/usr/bin/env bash
# What alignment does on the digits: the same autoencoder and generators with and without it, over several seeds.
#   bash scripts/compare_digits.sh
#   SEEDS="0 1 2" REGULARISERS="none flow" JOBS=2 bash scripts/compare_digits.sh
#   STAGES="ae mar sit" bash scripts/compare_digits.sh
#   PRESET=digits_textual RUNS=runs/textual REGULARISERS="none likelihood_0.01 distribution_0.1" bash scripts/compare_digits.sh
# An entry is a regulariser's name, or one of the flow's objectives with a weight; the latter are held off and ramped alike (SCHEDULE).
# STAGES are the autoencoder and any of the generators mar and sit; PRIOR_WORDS, AE_WORDS, MAR_WORDS and SIT_WORDS are options of the stages. JOBS runs go on at once, with one thread each.
# CFG is the table's guidance scale, 1 for none; CFG=best takes each run's best by FID, which favours what varies most.
# Prints the table and writes $RUNS/digits.json; run again, it goes on.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
SEEDS=${SEEDS:-0 1 2}
REGULARISERS=${REGULARISERS:-none flow}
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
RUNS=${RUNS:-runs/comparison}
SCHEDULE=${SCHEDULE:-regulariser.flow.start_step=500 regulariser.flow.ramp_steps=300}
STAGES=${STAGES:-ae mar}
PRIOR_WORDS=${PRIOR_WORDS:-} AE_WORDS=${AE_WORDS:-}
ensure_environment
export PYTHON OMP_NUM_THREADS=1 PRESET DATA= NPROC=1 NNODES=1
mkdir -p "$RUNS"
# Whatever ends this script ends its runs, each with a checkpoint.
stop() {
  kill -TERM $(jobs -rp) 2>/dev/null || true
  wait
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT

# The options of an entry of REGULARISERS.
options_of() {
  case $1 in
    likelihood_* | distribution_* | both_*)
      echo "regulariser.name=flow regulariser.flow.objective=${1%%_*} regulariser.flow.weight=${1#*_} $SCHEDULE" ;;
    *) echo "regulariser.name=$1" ;;
  esac
}

# All stages of one regulariser and one seed, after the seed's prior.
one_run() {
  local regulariser=$1 seed=$2 folder=$RUNS/$1_seed$2 stage words
  # shellcheck disable=SC2046,SC2086  # words are meant to be split
  supervised bash scripts/train_ae.sh "run_dir=$folder" "prior=$RUNS/prior_seed$seed/flowhead/prior" $(options_of "$regulariser") "train.seed=$seed" $AE_WORDS &&
    for stage in $STAGES; do
      [[ $stage == ae ]] && continue
      words=${stage^^}_WORDS
      supervised bash "scripts/train_$stage.sh" "run_dir=$folder" "train.seed=$seed" "sample.seed=$seed" ${!words:-} || return
    done
}

# COMMAND NAME ARGUMENT...: start it in the background once fewer than JOBS run, with its output in a log of that name.
in_background() {
  local command=$1 name=$2
  shift 2
  while (( $(jobs -rp | wc -l) >= JOBS )); do wait -n || true; done
  echo "started $name ($RUNS/$name.log)"
  "$command" "$@" > "$RUNS/$name.log" 2>&1 &
}

train_prior() {
  # shellcheck disable=SC2086
  supervised bash scripts/train_flowhead.sh "run_dir=$RUNS/prior_seed$1" "train.seed=$1" $PRIOR_WORDS
}

for seed in $SEEDS; do in_background train_prior "prior_seed$seed" "$seed"; done
wait
for seed in $SEEDS; do
  for regulariser in $REGULARISERS; do in_background one_run "${regulariser}_seed$seed" "$regulariser" "$seed"; done
done
wait
"$PYTHON" scripts/compare_table.py "$RUNS" --seeds $SEEDS --stages $STAGES --regularisers $REGULARISERS --cfg "${CFG:-1}"
