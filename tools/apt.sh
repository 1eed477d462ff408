# For sourcing. apt_install NAME...: install Debian packages where that needs no password; fails quietly elsewhere.
apt_install() {
    local root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        root=(sudo -n)
    fi
    # one unreachable source fails the update, though the package may well be had from another
    "${root[@]}" apt-get update -qq >/dev/null || true
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}
