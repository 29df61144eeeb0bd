# A function for quickstart.sh and test.sh: installs the checkout into a virtual environment.
#
#   install_into FOLDER "WATCHED ..." PIP-ARGUMENT...
#
# Does nothing if the last installation is newer than all WATCHED files. PYTHON names the Python that
# makes the environment: PYTHON=python3.12 sh scripts/quickstart.sh
install_into() {
  folder=$1
  watched=$2
  shift 2
  if [ -e "$folder" ]; then
    python=$folder/bin/python
    remedy="remove $folder and run this again"
  else
    python=${PYTHON:-python3}
    remedy="name another: PYTHON=python3.12 sh $0"
  fi
  ask='import sys; v = sys.version_info; print("%d.%d" % v[:2]); sys.exit(v < (3, 11))'
  if ! version=$("$python" -c "$ask" 2>/dev/null); then
    echo "$0: $python: found Python ${version:-that does not start}, needed 3.11 or 3.12; $remedy." >&2
    exit 2
  fi
  if [ ! -e "$folder" ] && ! "$python" -m venv "$folder"; then
    rm -rf "$folder" # otherwise the next call would take it for a complete one
    exit 1
  fi
  # shellcheck disable=SC2086 # WATCHED holds several paths
  if [ ! -e "$folder/installed" ] ||
    [ "$(find $watched -type f ! -name '*.pyc' -newer "$folder/installed")" ]; then
    echo "installing into $folder (about a minute, the tests' environment a few)" >&2
    begun=$(mktemp) # dated before pip starts, so that files changed meanwhile are noticed next time
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    mv "$begun" "$folder/installed"
  fi
}
