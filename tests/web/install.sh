#!/bin/sh
# Install Debian's Chromium for the browser tests, where it is missing. Does nothing, and says nothing, when it is there.
set -eu

command -v chromium >/dev/null && exit
command -v chromium-browser >/dev/null && exit
[ -n "${CHROMIUM:-}" ] && exit

sudo=$([ "$(id -u)" = 0 ] || echo sudo)
echo "Installing chromium ..."
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
