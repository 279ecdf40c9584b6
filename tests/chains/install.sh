#!/bin/bash
# Install the nodes that the tests here start into .chains: anvil from npm, and bitcoind. Quick when all is there already.
#
# bitcoind is Debian's bitcoin-knots, unpacked with the libraries it needs, its libc among them: no package of this
# machine is added or changed. It comes from the archive that this machine's apt already uses, and apt checks the
# archive's signatures. A bitcoind on PATH is used instead.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
chains=$root/.chains

fail() {
    printf 'tests/chains/install.sh: %s\n' "$@" >&2
    exit 1
}

want() { # command, Debian package
    command -v "$1" >/dev/null && return
    echo "Installing $2 ..."
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq "$2" >/dev/null
}

install_anvil() {
    want node nodejs
    want npm npm
    echo "Installing anvil ..."
    mkdir -p "$chains/node"
    cp node/package.json node/package-lock.json node/.npmrc "$chains/node"
    (cd "$chains/node" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) ||
        fail "npm could not install @foundry-rs/anvil (see above)"
    cp node/package-lock.json "$chains/node/node_modules/.installed"
}

ask_apt() { # command and its options: apt with lists, cache and an (empty) status of its own
    "$1" -o Dir::Etc="$work/etc" -o Dir::Etc::parts=/etc/apt/apt.conf.d -o Dir::State="$work/state" \
        -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" -qq "${@:2}"
}

fetch_knots() { # mirror, suite to take it from, other suites
    local suite
    rm -rf "$work"
    mkdir -p "$work"/{etc/preferences.d,state/lists/partial,cache/archives/partial}
    : >"$work/status"
    for suite in "${@:2}"; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $1 $suite main"
    done >"$work/etc/sources.list"
    ask_apt apt-get update && ask_apt apt-get install -y --download-only --no-install-recommends "bitcoin-knots/$2"
}

install_bitcoind() {
    local codename mirror package
    [ -r /usr/share/keyrings/debian-archive-keyring.gpg ] && [ "$(uname -m)" = x86_64 ] ||
        fail "this machine is no Debian on x86_64 that a bitcoind could be taken from." \
            "Install Bitcoin Core or Bitcoin Knots 28 or newer, so that bitcoind is on PATH, and try again."
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
    mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' |
        awk -v own="$codename" '($1 == own || $1 == "stable") && $2 == "main" { print $3; exit }')
    [ -n "$mirror" ] || fail "apt of this machine knows no Debian archive ($codename, main): see /etc/apt/sources.list"
    echo "Installing bitcoind ..."
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    fetch_knots "$mirror" trixie-backports trixie >"$work.log" 2>&1 ||
        fetch_knots "$mirror" forky >>"$work.log" 2>&1 ||
        fetch_knots "$mirror" sid >>"$work.log" 2>&1 ||
        fail "Debian's bitcoin-knots is neither in trixie-backports nor in forky nor in sid:" "$(tail -5 "$work.log")" \
            "Install Bitcoin Core or Bitcoin Knots 28 or newer, so that bitcoind is on PATH, and try again."
    mkdir -p "$chains"
    rm -rf "$chains/bitcoin"
    mkdir "$work/bitcoin"
    for package in "$work"/cache/archives/{bitcoin-knots,lib,zlib}*.deb; do
        dpkg-deb -x "$package" "$work/bitcoin/root"
    done
    mv "$work/bitcoin" "$chains/bitcoin"
    rm -f "$work.log"
}

cmp -s node/package-lock.json "$chains/node/node_modules/.installed" || install_anvil
command -v bitcoind >/dev/null || [ -x "$chains/bitcoin/root/usr/bin/bitcoind" ] || install_bitcoind
