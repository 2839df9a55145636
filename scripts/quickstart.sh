#!/usr/bin/env bash
# From a fresh machine to a report: environment, then every stage on the embedded digits.
#   bash scripts/quickstart.sh
# Run again, it goes on where it stopped; once complete, it says so and prints the report.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PRESET=digits
DATA=
RUN=runs/digits
start=$SECONDS
ensure_environment
complete=yes
for file in report.html flowhead/{result.json,prior/model.safetensors} ae/{result.json,evaluation.json,autoencoder/model.safetensors} \
  latents/manifest.json mar/{result.json,evaluation.json,generator/model.safetensors,samples}; do
  [[ -e $RUN/$file ]] || complete=
done
if [[ -n $complete ]]; then
  echo "flowhead, ae, latents, mar, samples, evaluation: complete ($RUN; delete the folder to start over)"
  "$PYTHON" scripts/report.py "$RUN" --print-only
  exit
fi
export PYTHON
for stage in train_flowhead train_ae train_mar; do
  echo "--- bash scripts/$stage.sh"
  before=$SECONDS
  PRESET=$PRESET supervised bash "scripts/$stage.sh"
  echo "$stage: $((SECONDS - before)) s"
done
"$PYTHON" scripts/report.py "$RUN"
echo "total: $((SECONDS - start)) s"
