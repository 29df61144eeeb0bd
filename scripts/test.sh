#!/bin/sh
# All tests, from nothing but Python (3.11 or 3.12):
#
#   sh scripts/test.sh
#
# Installs into .venv-test the versions of constraints.txt (Python 3.11) or the newest ones, then
# runs pytest, with any arguments given: sh scripts/test.sh tests/test_cli.py -k help
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
install_into .venv-test "pyproject.toml constraints.txt" -c constraints.txt -e '.[test,eval]'
exec .venv-test/bin/python -m pytest "$@"
