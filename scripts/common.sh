# Shared by the scripts: the environment, and one process or torchrun. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PRESET=${PRESET:-digits}
DATA=${DATA:-}
NPROC=${NPROC:-1}
NNODES=${NNODES:-1}
SECONDS_TO_MEET=7200
# Threads that wait spin for some microseconds and sleep then: spinning for long makes a busy machine crawl, and sleeping at once makes an idle one slow.
# The count is GNU's OpenMP's, which PyTorch has on Linux; others only hear that they are to sleep.
[[ -n ${OMP_WAIT_POLICY:-} ]] || export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}

fail() { echo "error: $*" >&2; exit 2; }

[[ $NPROC =~ ^[1-9][0-9]*$ && $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NPROC and NNODES are whole numbers, e.g. NPROC=8 NNODES=2"

# An interpreter that the requirements support.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

# find_environment [FILE]: sets PYTHON: the one given in the environment as it is, else that of .venv. Its status is whether requirements.txt, or
# FILE that adds to it, is installed there.
find_environment() {
  local file=${1:-requirements.txt}
  if [[ -n ${PYTHON:-} ]]; then
    "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null ||
      fail "PYTHON=$PYTHON is no interpreter with requirements.txt installed: leave PYTHON out to have .venv made"
    return
  fi
  PYTHON=.venv/bin/python
  [[ -x $PYTHON && -f .venv/$file.cksum && $(< ".venv/$file.cksum") == "$(cat requirements.txt "$file" | cksum)" ]]
}

# ensure_environment [FILE]: sets PYTHON, and makes .venv with requirements.txt, or FILE, where there is neither, with uv where there is uv.
ensure_environment() {
  local file=${1:-requirements.txt} base name
  find_environment "$file" && return
  (( NNODES == 1 )) || fail "no environment, and $NNODES nodes would make it at once: run 'bash scripts/train_ae.sh --help' on one machine first"
  base=$(find_python) || fail "no Python 3.10 to 3.13 found: install one, or set PYTHON=<interpreter with requirements.txt installed>"
  echo "environment: installing $file into .venv ($("$base" --version))"
  if command -v uv >/dev/null; then
    [[ -x $PYTHON ]] || uv venv --quiet --python "$base" .venv
    uv pip install --quiet --python "$PYTHON" -r "$file"
  else
    [[ -x $PYTHON ]] || "$base" -m venv .venv || { rm -rf .venv; fail "$base cannot make environments: install its venv module (Debian: python3-venv) or uv"; }
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$file"
  fi
  for name in requirements.txt "$file"; do cat requirements.txt "$name" | cksum > ".venv/$name.cksum"; done
}

# supervised COMMAND ARGUMENT...: run it and return its status. A SIGTERM to this script is handed on, and the script lives until the command has ended;
# bash alone would end at once and leave the command behind. Ctrl-C reaches both from the terminal.
supervised() {
  local child status=0
  terminated=
  (trap - INT; exec "$@") <&0 &
  child=$!
  trap 'terminated=yes; kill -TERM "$child" 2>/dev/null || true' TERM
  trap : INT
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do  # a signal ends the waiting, not the command
    status=0
    wait "$child" || status=$?
  done
  trap - TERM INT
  return "$status"
}

# launch MODULE ARGUMENT...: in one process, or in NPROC on each of NNODES nodes, which meet at MASTER_ADDR, the first of them (NODE_RANK=0).
# Every launch has a port of its own from MASTER_PORT on: a node that is ahead must not meet the rendezvous of the launch before.
launches=0
launch() {
  if (( NPROC * NNODES == 1 )); then
    supervised "$PYTHON" -m "$@"
    return
  fi
  local rendezvous=(--standalone) status=0
  if (( NNODES > 1 )); then
    local endpoint="${MASTER_ADDR:?set MASTER_ADDR to the first node}:$(( ${MASTER_PORT:-29500} + launches ))"
    launches=$(( launches + 1 ))
    echo "node ${NODE_RANK:-0} of $NNODES: $1 begins once all nodes are at $endpoint" >&2
    # The others wait while the first node does alone what launch_once starts.
    rendezvous=(--rdzv_backend c10d --rdzv_id "$1" --rdzv_endpoint "$endpoint"
      --rdzv_conf "is_host=$(( ${NODE_RANK:-0} == 0 )),read_timeout=$SECONDS_TO_MEET,join_timeout=$SECONDS_TO_MEET")
  fi
  FLOWPRIOR_EXIT_CODE=$(mktemp)
  export FLOWPRIOR_EXIT_CODE
  supervised "$PYTHON" -m scripts.torchrun --nnodes "$NNODES" --nproc_per_node "$NPROC" "${rendezvous[@]}" -m "$@" || status=$?
  # torchrun reports every failure as 1; a person's mistake keeps its code 2, divergence 3, a signal 143, also one that came before the
  # processes could note it.
  if (( status )); then
    if [[ -s $FLOWPRIOR_EXIT_CODE ]]; then status=$(< "$FLOWPRIOR_EXIT_CODE"); elif [[ -n $terminated ]]; then status=143; fi
  fi
  if [[ -s $FLOWPRIOR_EXIT_CODE.said ]]; then cat "$FLOWPRIOR_EXIT_CODE.said" >&2; fi
  rm -f "$FLOWPRIOR_EXIT_CODE" "$FLOWPRIOR_EXIT_CODE.said"
  unset FLOWPRIOR_EXIT_CODE
  return "$status"
}

# launch_once MODULE ARGUMENT...: in one process of the first node.
launch_once() {
  (( ${NODE_RANK:-0} == 0 )) || return 0
  NPROC=1 NNODES=1 launch "$@"
}

# help_requested ARGUMENT...: whether --help is among them; help needs one process only.
help_requested() {
  local word
  for word in "$@"; do [[ $word == --help || $word == -h ]] && return 0; done
  return 1
}

# train_generator NAME ARGUMENT...: stage 3 with the generator in the package NAME, one command after the other. What NAME's own script has defined as
# after_training runs before samples are drawn, with the same arguments.
train_generator() {
  local name=$1 arguments=(--preset "$PRESET")
  shift
  [[ -n $DATA ]] && arguments+=(data.source=files "data.path=$DATA")
  arguments+=("$@")
  if help_requested "$@"; then
    NPROC=1 NNODES=1 launch "$name" train "${arguments[@]}"
    return
  fi
  launch "$name" cache_latents "${arguments[@]}"
  launch_once "$name" estimate_scale "${arguments[@]}"
  launch "$name" train "${arguments[@]}"
  if declare -F after_training >/dev/null; then after_training "${arguments[@]}"; fi
  launch "$name" generate "${arguments[@]}"
  launch "$name" evaluate "${arguments[@]}"
}
