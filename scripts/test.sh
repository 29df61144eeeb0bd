#!/bin/sh
# Checks and tests the checkout, from nothing but Python (3.11 or 3.12):
#
#   sh scripts/test.sh                                # ruff, mypy, then every test
#   sh scripts/test.sh tests/test_cli.py -k help      # pytest alone, with these arguments
#
# Installs into .venv-test the versions of constraints.txt (Python 3.11) or the newest ones. The last
# lines of the output list every test that was skipped, with the reason.
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
install_into .venv-test "pyproject.toml constraints.txt" -c constraints.txt -e '.[test,eval]'
bin=.venv-test/bin
if [ $# -eq 0 ]; then
  "$bin/ruff" check malt_jax tests scripts
  "$bin/ruff" format --check malt_jax tests scripts
  "$bin/mypy"
  # Two files at a time, in the order of tests/conftest.py: most of a test's time is compiling, which
  # keeps one core busy.
  set -- -n 2 --dist loadfile --no-loadscope-reorder
fi
exec "$bin/python" -m pytest "$@"
