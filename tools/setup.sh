#!/usr/bin/env bash
# The environment in .venv: the pinned requirements, and svdgrad installed in place. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(pwd -P)

stop() {
    echo "setup: $1" >&2
    exit 1
}

# An environment made here that still works; one that was moved or copied has programs that start another's Python.
usable() { grep -qF "$here/.venv" .venv/pyvenv.cfg 2>/dev/null && .venv/bin/python -c "import pip" >/dev/null 2>&1; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    if usable; then python=.venv/bin/python; fi
fi

newer="install a newer one and name it, as in: make book PYTHON=python3.12"
command -v "$python" >/dev/null || stop "Python 3.11 or newer is needed and '$python' was not found; $newer"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed and '$python' is $version; $newer"

# What the environment depends on, by content: a checkout or a touch changes times, not this.
wanted=$({ cat requirements.txt pyproject.toml; echo "$version $here"; } | cksum)
[ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ] || ! usable || exit 0

if ! usable || [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
    # Debian and Ubuntu leave ensurepip, which puts pip into an environment, to a package of its own.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "setup: installing python$version-venv"
        . tools/apt.sh
        apt_install "python$version-venv" || stop "'$python' cannot make virtual environments and this account may not \
install packages; as an administrator, run: apt-get install python$version-venv"
    fi
    echo "setup: making a virtual environment in .venv (Python $version)"
    "$python" -m venv --clear .venv
fi

rm -f .venv/installed
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet install)
echo "setup: installing requirements.txt (a minute or more, once)"
"${pip[@]}" -r requirements.txt
echo "setup: installing svdgrad in place"
"${pip[@]}" --no-deps --no-build-isolation -e .
echo "$wanted" >.venv/installed
