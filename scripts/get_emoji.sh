#!/usr/bin/env bash
# Some 3,800 emoji of two vendors, 64 x 64, as a folder of images with a sub-folder for each of nine categories. Fetches 120 MB with npm.
#   bash scripts/get_emoji.sh DIR
# They are the base images, without skin tones, of npm's emoji-datasource-twitter (CC-BY 4.0) and emoji-datasource-google (Apache 2.0).
cd_from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $# == 1 && $1 != -* ]] || fail "name the folder that the images go into: bash scripts/get_emoji.sh DIR"
[[ $1 == /* ]] && folder=$1 || folder=$cd_from/$1
ensure_environment
if [[ ! -f $folder/LICENSES ]]; then
  command -v npm >/dev/null || fail "npm is not there, which fetches the images: install Node.js, or copy the folder from where it was made"
  packages=$(mktemp -d)
  trap 'rm -rf "$packages"' EXIT
  for vendor in twitter google; do
    echo "fetching emoji-datasource-$vendor"
    (cd "$packages" && npm pack --silent "emoji-datasource-$vendor@16" >/dev/null) || fail "npm could not fetch emoji-datasource-$vendor: see above"
  done
  "$PYTHON" scripts/unpack_emoji.py "$folder" "$packages"/*.tgz
fi
echo "emoji: $folder"
