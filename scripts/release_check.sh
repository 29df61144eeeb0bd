#!/bin/sh
# Builds what a release uploads, and installs it where nothing else is: a few minutes, most of them pip's.
#
#   sh scripts/release_check.sh [FOLDER]
#
# Ends with "release check: ok". Needs `pip install build twine`; uploads nothing.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=${1:-runs/release}
rm -rf "$folder/dist" "$folder/venv" "$folder/unpacked"
mkdir -p "$folder/unpacked"

echo "1. wheel and source distribution"
"$python" -m build --outdir "$folder/dist" . >"$folder/build.log" 2>&1 || { tail -20 "$folder/build.log"; exit 1; }
"$python" -m twine check --strict "$folder"/dist/*

echo "2. the wheel made from the source distribution has the same files"
tar -xzf "$folder"/dist/*.tar.gz -C "$folder/unpacked" --strip-components 1
"$python" -m build --wheel --outdir "$folder/unpacked/dist" "$folder/unpacked" >>"$folder/build.log" 2>&1
names() { "$python" -m zipfile -l "$1" | awk 'NR > 1 {print $1}' | sort; }
names "$folder"/dist/*.whl >"$folder/direct.txt"
names "$folder"/unpacked/dist/*.whl >"$folder/again.txt"
cmp "$folder/direct.txt" "$folder/again.txt"

echo "3. the wheel in an empty environment"
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "$(ls "$folder"/dist/*.whl)"
cd "$folder"
./venv/bin/malt --version
./venv/bin/malt --help >/dev/null
./venv/bin/malt run --config quickstart --output-dir "$PWD/dry" --dry-run >/dev/null
test ! -e dry  # a dry run writes nothing
./venv/bin/python -c "import malt_jax; malt_jax.search, malt_jax.Pipeline"
./venv/bin/pip check
echo "release check: ok"
