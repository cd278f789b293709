#!/usr/bin/env bash
# Sets up a virtual environment with the locked versions and this checkout, editable.
# Usage: dev/install.sh [--dev] [VENV]; --dev adds the linters and the test tools, $PYTHON picks the
# interpreter. Does nothing if everything is in place.
set -euo pipefail
cd "$(dirname "$0")/.."

part=run
if [ "${1:-}" = --dev ]; then
    part=dev
    shift
fi
venv=${1:-.venv}
sum=$(cat requirements/*.txt setup.py dev/install.sh | cksum | cut -d' ' -f1)
stamp="$venv/.d2_plugins-$part-$sum"
[ -e "$stamp" ] && exit 0

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
candidates=(python3.11 python3.12 python3.13 python3)
[ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
[ -x "$venv/bin/python" ] && candidates=("$venv/bin/python")
for python in "${candidates[@]}"; do
    supported "$python" && break
done
supported "$python" || {
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
        version=none
    echo "error: $python is not Python 3.11, 3.12 or 3.13 (version: $version); name one with PYTHON=..." >&2
    exit 2
}
if [ ! -x "$venv/bin/python" ]; then
    echo "Setting up $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "Installing the locked packages (torch alone is some GB with its CUDA libraries) ..."
pip install --quiet -r requirements/run.txt
[ $part = run ] || pip install --quiet --no-deps -r requirements/dev.txt
# A detectron2 that is there already is the user's choice: leave it alone.
if ! "$venv/bin/python" -c 'import detectron2' 2>/dev/null; then
    pip install --quiet --no-deps --require-hashes -r requirements/detectron2.txt \
        --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any \
        --target "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
fi
pip install --quiet --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import d2_plugins'
find "$venv" -maxdepth 1 -name '.d2_plugins-*' ! -name "*-$sum" -delete
touch "$venv/.d2_plugins-run-$sum" "$stamp"
