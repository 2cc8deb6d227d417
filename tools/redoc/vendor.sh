#!/bin/sh
# Copies ReDoc's own bundle, which /redoc serves, into the repository: without the name of its source map, and with an
# empty picture instead of the one logo that it would load from elsewhere.
set -eu
cd "$(dirname "$0")"
to=../../service/api/static/redoc
package=redoc-2.5.4.tgz
digest=44922df4d0eb45c1b066c09ec251e6bd9bd7ded16bc69e87613337b9d911a56e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm pack --silent --pack-destination "$folder" "redoc@2.5.4" >/dev/null
echo "$digest  $folder/$package" | sha256sum --check --quiet
tar -xzf "$folder/$package" -C "$folder"
mkdir -p "$to"
sed -e 's#https://cdn.redoc.ly/redoc/logo-mini.svg#data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=#g' \
	-e '/^\/\/# sourceMappingURL=/d' "$folder/package/bundles/redoc.standalone.js" >"$to/redoc.standalone.js"
cp "$folder/package/LICENSE" "$to/LICENSE"
cp "$folder/package/bundles/redoc.standalone.js.LICENSE.txt" "$to/redoc.standalone.js.LICENSE.txt"
