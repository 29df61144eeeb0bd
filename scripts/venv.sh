# Read by quickstart.sh and test.sh: installs the checkout into a virtual environment of its own.
#
#   install_into FOLDER "WATCHED ..." PIP-ARGUMENT...
#
# Does nothing where the last installation is younger than all that is watched. PYTHON names the Python
# to make the environment with: PYTHON=python3.12 sh scripts/quickstart.sh
install_into() {
  folder=$1
  watched=$2
  shift 2
  if [ -e "$folder" ]; then
    python=$folder/bin/python
    mend="remove $folder and run this again"
  else
    python=${PYTHON:-python3}
    mend="name another: PYTHON=python3.12 sh $0"
  fi
  ask='import sys; v = sys.version_info; print("%d.%d" % v[:2]); sys.exit(v < (3, 11))'
  if ! version=$("$python" -c "$ask" 2>/dev/null); then
    echo "$0: $python: found Python ${version:-that does not start}, needed 3.11 or 3.12; $mend." >&2
    exit 2
  fi
  if [ ! -e "$folder" ] && ! "$python" -m venv "$folder"; then
    rm -rf "$folder" # half of one would be taken for a whole one
    exit 1
  fi
  # shellcheck disable=SC2086 # several paths
  if [ ! -e "$folder/installed" ] ||
    [ "$(find $watched -type f ! -name '*.pyc' -newer "$folder/installed")" ]; then
    echo "installing into $folder (about a minute, the tests' a few)" >&2
    begun=$(mktemp) # what changes meanwhile may be missed: it is installed again
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    mv "$begun" "$folder/installed"
  fi
}
