#!/usr/bin/env bash
# How hard it will be to generate from a latent space, and why: one tokenizer, or several side by side, in report.html and report.json.
#   bash scripts/latent_report.sh TOKENIZER [TOKENIZER ...] [option=value ...]
#   DATA=/data/images bash scripts/latent_report.sh runs/mine stabilityai/sd-vae-ft-mse data.size=256 images=500
# DATA is where images lie: a folder, tar shards, a zip, Parquet files and others (docs/usage.md); without it the embedded digits are measured.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
ensure_environment
if [[ -n $DATA ]]; then set -- data.source=files "data.path=$DATA" "$@"; fi
launch_once latent_report "$@"
