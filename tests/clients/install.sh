#!/bin/sh
# Install the clients that the tests here run: an older Python SDK, the TypeScript SDK, Claude Code, and cURL.
# Quick when all is there already. The current Python SDK is part of the development environment.
set -eu
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)

want() { # command, Debian package
    command -v "$1" >/dev/null && return
    echo "Installing $2 ..."
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq "$2" >/dev/null
}

same() { # file, its copy from when it was last installed
    cmp -s "$1" "$2"
}

want curl curl
want node nodejs
want npm npm

if ! same node/package-lock.json node/node_modules/.installed; then
    echo "Installing the TypeScript SDK and Claude Code ..."
    (cd node && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp node/package-lock.json node/node_modules/.installed
fi
if ! same python/requirements.txt "$root/.clients/python/.installed"; then
    echo "Installing an older Python SDK ..."
    rm -rf "$root/.clients/python"
    "${PYTHON:-$root/.venv/bin/python}" -m pip install --quiet --disable-pip-version-check --no-deps \
        --require-hashes --target "$root/.clients/python" -r python/requirements.txt
    cp python/requirements.txt "$root/.clients/python/.installed"
fi
