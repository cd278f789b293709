#!/usr/bin/env bash
# Sets up a virtual environment with the locked versions and this checkout, editable.
# Usage: dev/install.sh [VENV]; $PYTHON picks the interpreter. Does nothing when all is in place.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${1:-.venv}
stamp="$venv/.d2_plugins-$(cat requirements/*.txt setup.py dev/install.sh | cksum | cut -d' ' -f1)"
[ -e "$stamp" ] && exit 0

if [ ! -x "$venv/bin/python" ]; then
    python=${PYTHON:-$(command -v python3.11 || command -v python3)}
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
        echo "error: $python is not Python 3.10 to 3.13; name one with PYTHON=..." >&2
        exit 2
    }
    echo "Setting up $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "Installing the locked packages (torch alone is some GB with its CUDA libraries) ..."
pip install --quiet -r requirements/lock.txt
# A detectron2 that is there already is the user's choice: leave it alone.
if ! "$venv/bin/python" -c 'import detectron2' 2>/dev/null; then
    pip install --quiet --no-deps --require-hashes -r requirements/detectron2.txt \
        --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any \
        --target "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
fi
pip install --quiet --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import d2_plugins'
rm -f "$venv"/.d2_plugins-*
touch "$stamp"
