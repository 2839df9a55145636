#!/usr/bin/env bash
# Every test, on a fresh machine: first the environment, then pytest, in as many processes as there are cores, four at most.
#   bash scripts/test.sh [--oldest] [what pytest takes]
# The environment has requirements-test.txt: beside requirements.txt, the libraries that some kinds of data are read by.
# --oldest: under the oldest versions that it allows, in .venv-oldest; needs uv. Tests of what those versions do not know yet
# skip, and say so at the end.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Sets PYTHON: .venv-oldest with the lowest version of every line of the requirements, and what goes with them.
ensure_oldest_environment() {
  PYTHON=.venv-oldest/bin/python
  local wanted
  wanted=$(cat requirements.txt requirements-test.txt | cksum)
  [[ -x $PYTHON && -f .venv-oldest/requirements.cksum && $(< .venv-oldest/requirements.cksum) == "$wanted" ]] && return
  command -v uv >/dev/null || fail "--oldest needs uv, which finds the oldest versions: pip install uv"
  echo "environment: installing the oldest versions that requirements-test.txt allows into .venv-oldest"
  rm -rf .venv-oldest
  uv venv --quiet --python ">=3.10,<3.12" .venv-oldest  # the oldest versions have no wheels for later ones
  uv pip install --quiet --python "$PYTHON" --resolution lowest-direct -r requirements-test.txt
  echo "$wanted" > .venv-oldest/requirements.cksum
}

if [[ ${1:-} == --oldest ]]; then
  shift
  ensure_oldest_environment
  set -- -rs "$@"
else
  ensure_environment requirements-test.txt
fi
cores=$(getconf _NPROCESSORS_ONLN)
# A file's tests share what is slow to make, so they stay together.
exec "$PYTHON" -m pytest --numprocesses "$(( cores < 4 ? cores : 4 ))" --dist loadfile "$@"
