#!/bin/sh
# Copies the locked packages that the console uses into the repository. Nothing is built: they are the files
# of the packages, with imports by relative path (the page allows no import map) and without the names of source maps.
set -eu
cd "$(dirname "$0")"
ui=../../service/api/static/ui/vendor
npm ci --ignore-scripts --no-audit --no-fund --silent
plain() { sed -e 's#from"preact"#from"./preact.js"#g' -e '/^\/\/# sourceMappingURL=/d' "$1"; }
plain node_modules/preact/dist/preact.mjs >"$ui/preact.js"
plain node_modules/preact/hooks/dist/hooks.mjs >"$ui/hooks.js"
plain node_modules/htm/dist/htm.mjs >"$ui/htm.js"
{ cat node_modules/uplot/dist/uPlot.iife.min.js; echo; echo 'export default uPlot;'; } >"$ui/uplot.js"
cp node_modules/uplot/dist/uPlot.min.css "$ui/uplot.css"
for package in preact htm uplot; do cp "node_modules/$package/LICENSE" "$ui/LICENSE-$package.txt"; done
rm -rf node_modules
python3 - "$ui" <<'PYTHON'
import hashlib, json, pathlib, sys

lock = json.loads(pathlib.Path("package-lock.json").read_text())
packages = {name.removeprefix("node_modules/"): entry["version"] for name, entry in lock["packages"].items() if name}
files = sorted(pathlib.Path(sys.argv[1]).iterdir())
digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
pathlib.Path("digests.json").write_text(json.dumps({"packages": packages, "files": digests}, indent=1) + "\n")
PYTHON
