#!/usr/bin/env bash
# `make card`: everything that is to be measured on a machine with a GPU, by the python3 that is there and what that has.
# PYTHON names another, OUT the folder for the results; DEVICE=cpu and QUICK=1 rehearse it.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=${OUT:-build/card/$(date +%Y-%m-%d-%H%M%S)}
command -v "$python" >/dev/null || {
    echo "card: '$python' was not found; name another, as in: make card PYTHON=python3.12" >&2
    exit 1
}

# wheels that the machine cannot fetch, such as python-flint's; without that one the judge has fewer digits
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if ls .whl/*.whl >/dev/null 2>&1; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl ||
        echo "card: the wheels in .whl do not fit this Python, and are left out"
fi

export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# JAX would take three quarters of the GPU's memory at once; plugins of pytest that happen to be there would add warnings
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
"$python" -m benchmarks.card "$out" --device "${DEVICE:-cuda}" ${QUICK:+--quick}
