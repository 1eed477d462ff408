#!/usr/bin/env bash
# What the tests need to look at the rendered pages: a Chromium, and a driver for it that runs. Where they cannot be had
# this only says so: those tests then skip with a reason, or fail where CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."

browser() { # on Ubuntu the command may exist and only ask for a snap: it counts if it runs
    local name
    for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
        if [ -n "$name" ] && "$name" --version >/dev/null 2>&1; then return 0; fi
    done
    return 1
}
driver() { .venv/bin/python -m playwright --version >/dev/null 2>&1; }

wanted=()
# Ubuntu's chromium package is only the stub of a snap
browser || grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null || wanted+=(chromium fonts-liberation)
driver || wanted+=(libatomic1)
if [ ${#wanted[@]} -gt 0 ]; then
    echo "test: trying to install ${wanted[*]}, to look at the pages"
    . tools/apt.sh
    apt_install "${wanted[@]}" || true
fi
browser || echo "test: no Chromium, so nobody looks at the pages: install Chromium or Google Chrome, or set CHROMIUM"
driver || echo "test: Playwright does not run, so nobody looks at the pages: install the package libatomic1"
