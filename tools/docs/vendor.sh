#!/bin/sh
# Copies the shim with which the site's search works from disk, where browsers refuse web workers, into docs/assets.
set -eu
cd "$(dirname "$0")"
to=../../docs/assets/iframe-worker
package=iframe-worker-1.0.4.tgz
digest=e8c5d12d87829c503afba01d67772ea9f4aba5b7ae57a0c98e1917711030efbb
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm pack --silent --pack-destination "$folder" "iframe-worker@1.0.4" >/dev/null
echo "$digest  $folder/$package" | sha256sum --check --quiet
tar -xzf "$folder/$package" -C "$folder"
mkdir -p "$to"
cp "$folder/package/shim/index.js" "$to/shim.js"
cp "$folder/package/LICENSE" "$to/LICENSE.txt"
