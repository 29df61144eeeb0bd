#!/bin/sh
# The whole method on the model and task in the package, from nothing but Python (3.11 or 3.12):
#
#   sh scripts/quickstart.sh
#
# Installs into .venv, then runs search, labelling, training, evaluation, export and report. Prints
# the table of results; the report is runs/quickstart/report.html. Run again, it continues where
# it stopped. Fields of the config may follow: sh scripts/quickstart.sh --seed 1 --output-dir runs/one
# Another Python than python3: PYTHON=python3.12 sh scripts/quickstart.sh
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
install_into .venv "pyproject.toml malt_jax" .
exec .venv/bin/malt run --config configs/quickstart.yaml "$@"
